// Leaves a secret where the next request might find it, and says what an earlier request left.
const fs = require('fs');
const os = require('os');
const { spawn } = require('child_process');
const { Worker } = require('worker_threads');

const FILE = '/tmp/rewind-demo';
const NAME = 'REWIND_DEMO';
const MARK = 'rewind-plant=';
let kept;

const threads = () => fs.readdirSync('/proc/self/task').length;
const threadsAtInit = threads();

function planted(pid) {
    try {
        return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith(MARK);
    } catch (gone) {
        return false;
    }
}

function main({ secret }) {
    const found = [];
    if (kept !== undefined) found.push('global');
    if (fs.existsSync(FILE)) found.push('file');
    if (process.env[NAME] !== undefined) found.push('env');
    if (threads() > threadsAtInit) found.push('thread');
    if (fs.readdirSync('/proc').some((name) => /^\d+$/.test(name) && planted(name))) found.push('child');

    kept = secret;
    fs.writeFileSync(FILE, secret);
    process.env[NAME] = secret;
    // One is enough to be found; fifty would exhaust the container's memory.
    if (!found.includes('thread')) new Worker(`const secret = ${JSON.stringify(secret)}; setInterval(() => secret, 1000)`, { eval: true });
    if (!found.includes('child')) spawn('/bin/sleep', ['1000'], { argv0: MARK + secret, stdio: 'ignore' }).unref();
    return { found, container: os.hostname() };
}
