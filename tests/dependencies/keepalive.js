// Talks to a server over a connection that is kept for the next time.
const fs = require('fs');
const http = require('http');
const os = require('os');

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function gateway() {
    const lines = fs.readFileSync('/proc/net/route', 'ascii').split('\n').slice(1);
    const fields = lines.map((line) => line.split('\t')).find((fields) => fields[1] === '00000000');
    return Buffer.from(fields[2], 'hex').reverse().join('.');
}

function get(port) {
    return new Promise((answered, failed) => {
        const request = http.get({ host: gateway(), port, agent }, (response) => {
            let text = '';
            response.on('data', (part) => (text += part));
            response.on('end', () => answered(text));
        });
        request.on('error', failed);
    });
}

async function main({ port }) {
    const found = Object.keys(agent.freeSockets).length > 0;
    const answers = [];
    for (let n = 0; n < 3; n++) answers.push(await get(port));
    // The agent takes its connection back a moment after the answer.
    await new Promise((soon) => setImmediate(soon));
    return { found, answers, host: os.hostname() };
}
