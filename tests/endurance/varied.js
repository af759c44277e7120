// Does what ordinary functions do, one thing after another, and says what it finds of other requests.
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');
const { execFileSync, spawn } = require('child_process');
const { Worker } = require('worker_threads');

const seen = [];
const kept = [];

const DO = [
    () => {},
    function cycles() {
        for (let n = 0; n < 200000; n++) {
            const node = { n };
            node.me = node;
        }
        global.gc();
    },
    function thread() {
        return new Promise((ready) => {
            const worker = new Worker('setInterval(() => {}, 1000); require("worker_threads").parentPort.postMessage(1)', { eval: true });
            worker.on('message', ready);
            kept.push(worker);
        });
    },
    function timers() {
        setInterval(() => seen.push('timer'), 10);
        setTimeout(() => seen.push('late'), 50);
        Promise.resolve().then(() => setImmediate(() => seen.push('soon')));
    },
    function place() {
        process.chdir('/tmp');
        process.umask(0o077);
        process.env.WHERE = 'elsewhere';
        process.on('SIGUSR2', () => {});
    },
    function large() {
        kept.push(Buffer.alloc(20 << 20, 'x'));
    },
    function listen() {
        return new Promise((ready) => kept.push(net.createServer().listen(0, '127.0.0.1', ready)));
    },
    function files() {
        for (let n = 0; n < 10; n++) {
            fs.writeFileSync(path.join(fs.mkdtempSync('/tmp/made-'), 'file'), 'x'.repeat(1000 * n));
        }
        fs.writeFileSync('/etc/hostname-of-mine', 'x');
    },
    function child() {
        kept.push(spawn('/bin/sleep', ['1000'], { stdio: 'ignore' }));
        execFileSync('/bin/true');
    },
    function talk() {
        for (let n = 0; n < 20; n++) console.log('line', n);
    },
];

async function main({ n }) {
    const found = [...seen];
    seen.push(n);
    await DO[n % DO.length]();
    return { found, host: os.hostname() };
}
