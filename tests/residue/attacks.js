'use strict';
// Residue attacks from Node: request 1 plants, request 2 looks. As in attacks.py, the looker is given the
// secret backwards, so that its own request is not what it finds.

const fs = require('fs');
const net = require('net');
const os = require('os');
const childProcess = require('child_process');
const worker = require('worker_threads');

const kept = [];
const pristine = { inner: 'pristine' };
const file = fs.openSync('/etc/passwd', 'r');
const shared = new SharedArrayBuffer(4096);
fs.writeFileSync('/tmp/pristine', 'pristine contents\n');
fs.utimesSync('/tmp/pristine', 1600000000, 1600000000);

const backwards = (text) => [...text].reverse().join('');
const isSecret = (found, mark) => found !== undefined && found !== null && backwards(String(found)).includes(mark);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function read(path) {
    try {
        return fs.readFileSync(path, 'latin1');
    } catch {
        return null;
    }
}

const status = (key) => new RegExp(`^${key}:\\s*(.*)$`, 'm').exec(read('/proc/self/status'))[1];

// Looks for the secret in all memory of this process.
function scan(mark) {
    const memory = fs.openSync('/proc/self/mem', 'r');
    const buffer = Buffer.alloc(1 << 20);
    try {
        for (const line of read('/proc/self/maps').split('\n')) {
            const match = /^([0-9a-f]+)-([0-9a-f]+) r/.exec(line);
            if (!match || line.includes('[v')) continue;
            const end = BigInt('0x' + match[2]);
            for (let at = BigInt('0x' + match[1]); at < end; at += BigInt(buffer.length)) {
                const size = Number(end - at < BigInt(buffer.length) ? end - at : BigInt(buffer.length));
                let length = 0;
                try {
                    length = fs.readSync(memory, buffer, 0, size, at);
                } catch {
                    break;
                }
                // Byte by byte, backwards: the secret as such must never come into being here.
                for (let p = buffer.indexOf('RESIDUE-'); p >= 0 && p < length; p = buffer.indexOf('RESIDUE-', p + 1)) {
                    let same = 0;
                    while (same < mark.length && buffer[p + same] === mark.charCodeAt(mark.length - 1 - same)) same++;
                    if (same === mark.length) return line.slice(-60) || 'anonymous';
                }
                buffer.fill(0);
            }
        }
    } finally {
        fs.closeSync(memory);
        buffer.fill(0);
    }
    return false;
}

async function haunted(path, mark) {
    for (let i = 0; i < 20; i++) {
        if (isSecret(read(path), mark)) return true;
        await sleep(20);
    }
    return false;
}

const shell = (script) => childProcess.spawn('/bin/sh', ['-c', script], { detached: true, stdio: 'ignore' }).unref();
const haunt = (path, secret) => `while :; do echo ${secret} > ${path}; sleep 0.02; done`;

const THREADS = () => fs.readdirSync('/proc/self/task').length;

const cases = {
    global: [(secret) => void kept.push(secret), (mark) => kept.some((x) => isSecret(x, mark))],
    heap: [(secret) => void kept.push(Buffer.alloc(1 << 20, secret)), (mark) => scan(mark)],
    first: [() => {}, (mark) => scan(mark)],
    freed: [
        (secret) => {
            for (let i = 0; i < 1000; i++) Buffer.from(secret.repeat(20) + i).toString();
        },
        (mark) => scan(mark),
    ],
    prototype: [
        (secret) => {
            Object.prototype.residue = secret; // eslint-disable-line no-extend-native
        },
        (mark) => isSecret({}.residue, mark),
    ],
    closure: [
        (secret) => {
            pristine.inner = secret;
        },
        (mark) => isSecret(pristine.inner, mark),
    ],
    module_cache: [
        (secret) => {
            require('util').residue = secret;
        },
        (mark) => isSecret(require('util').residue, mark),
    ],
    shared_buffer: [
        (secret) => Buffer.from(shared).write(secret),
        (mark) => isSecret(Buffer.from(shared).toString('latin1', 0, 100), mark),
    ],
    web_assembly: [
        (secret) => {
            const memory = new WebAssembly.Memory({ initial: 16 });
            Buffer.from(memory.buffer).write(secret, 100);
            kept.push(memory);
        },
        (mark) => kept.some((x) => x.buffer && isSecret(Buffer.from(x.buffer).toString('latin1', 100, 200), mark)),
    ],
    environment: [
        (secret) => {
            process.env.RESIDUE = secret;
        },
        (mark) => isSecret(process.env.RESIDUE, mark),
    ],
    interval: [
        (secret) => void setInterval(() => fs.writeFileSync('/tmp/interval', secret), 20),
        (mark) => haunted('/tmp/interval', mark),
    ],
    background: [
        (secret) => void sleep(10).then(async () => {
            for (let i = 0; i < 200; i++) {
                kept.push(secret);
                fs.writeFileSync('/tmp/background', secret);
                await sleep(5);
            }
        }),
        async (mark) => (await haunted('/tmp/background', mark)) || kept.some((x) => isSecret(x, mark)),
    ],
    thread: [
        (secret) => new Promise((resolve) => {
            const code = `const fs = require('fs'); require('worker_threads').parentPort.postMessage('up');
                setInterval(() => fs.writeFileSync('/tmp/thread', ${JSON.stringify(secret)}), 20);`;
            new worker.Worker(code, { eval: true }).on('message', resolve);
        }),
        (mark) => haunted('/tmp/thread', mark),
    ],
    child: [(secret) => shell(haunt('/tmp/child', secret)), (mark) => haunted('/tmp/child', mark)],
    daemon: [
        (secret) => shell(`trap '' TERM HUP INT QUIT; (setsid sh -c '${haunt('/tmp/daemon', secret)}' &)`),
        (mark) => haunted('/tmp/daemon', mark),
    ],
    fork_storm: [
        async (secret) => {
            shell(`trap '' TERM HUP INT QUIT CHLD; while :; do echo ${secret} > /tmp/storm; (sleep 0.01 &); done`);
            await sleep(100);
        },
        (mark) => haunted('/tmp/storm', mark),
    ],
    new_file: [(secret) => fs.writeFileSync('/tmp/residue', secret), (mark) => isSecret(read('/tmp/residue'), mark)],
    changed_file: [
        (secret) => {
            fs.writeFileSync('/tmp/pristine', secret.slice(0, 18));
            fs.utimesSync('/tmp/pristine', 1600000000, 1600000000);
        },
        () => read('/tmp/pristine') !== 'pristine contents\n',
    ],
    appended: [(secret) => fs.appendFileSync('/tmp/pristine', secret), (mark) => isSecret(read('/tmp/pristine'), mark)],
    deleted: [() => fs.unlinkSync('/tmp/pristine'), () => !fs.existsSync('/tmp/pristine')],
    renamed: [() => fs.renameSync('/tmp/pristine', '/tmp/renamed'), () => fs.existsSync('/tmp/renamed')],
    lower_changed: [(secret) => fs.appendFileSync('/etc/issue', secret), (mark) => isSecret(read('/etc/issue'), mark)],
    lower_deleted: [() => fs.unlinkSync('/etc/issue.net'), () => !fs.existsSync('/etc/issue.net')],
    symlink: [(secret) => fs.symlinkSync(secret, '/tmp/link'), (mark) => {
        try {
            return isSecret(fs.readlinkSync('/tmp/link'), mark);
        } catch {
            return false;
        }
    }],
    mode: [() => fs.chmodSync('/tmp/pristine', 0o4711), () => (fs.statSync('/tmp/pristine').mode & 0o7777) === 0o4711],
    owner: [() => fs.chownSync('/tmp/pristine', 1234, 4321), () => fs.statSync('/tmp/pristine').uid === 1234],
    times: [() => fs.utimesSync('/tmp/pristine', 1, 2), () => fs.statSync('/tmp/pristine').mtimeMs === 2000],
    own_code: [
        (secret) => fs.appendFileSync('/nodejsAction/runner.js', `// ${secret}`),
        (mark) => isSecret(read('/nodejsAction/runner.js'), mark),
    ],
    shm: [(secret) => fs.writeFileSync('/dev/shm/residue', secret), (mark) => isSecret(read('/dev/shm/residue'), mark)],
    hosts: [(secret) => fs.appendFileSync('/etc/hosts', `6.6.6.6 ${secret}\n`), (mark) => isSecret(read('/etc/hosts'), mark)],
    fd_open: [
        (secret) => void fs.openSync('/tmp/' + secret, 'w'),
        (mark) => fs.readdirSync('/proc/self/fd').some((fd) => {
            try {
                return isSecret(fs.readlinkSync('/proc/self/fd/' + fd), mark);
            } catch {
                return false;
            }
        }),
    ],
    fd_closed: [() => fs.closeSync(file), () => {
        try {
            return fs.fstatSync(file).ino !== fs.statSync('/etc/passwd').ino;
        } catch {
            return true;
        }
    }],
    offset: [
        () => void fs.readSync(file, Buffer.alloc(42), 0, 42, null),
        () => /^pos:\s*42$/m.test(read('/proc/self/fdinfo/' + file)),
    ],
    listener: [
        () => new Promise((resolve) => void net.createServer().listen(9999, '127.0.0.1', resolve)),
        () => new Promise((resolve) => {
            const socket = net.connect(9999, '127.0.0.1', () => resolve(true) || socket.destroy());
            socket.on('error', () => resolve(false));
        }),
    ],
    abstract: [
        (secret) => new Promise((resolve) => void net.createServer().listen('\0' + secret, resolve)),
        (mark) => isSecret(read('/proc/net/unix'), mark),
    ],
    watch: [
        () => void fs.watch('/tmp', () => {}),
        () => fs.readdirSync('/proc/self/fd').some((fd) => (read('/proc/self/fdinfo/' + fd) || '').includes('inotify wd')),
    ],
    handler: [() => void process.on('SIGUSR2', () => {}), () => (parseInt(status('SigCgt').slice(-4), 16) >> 11) & 1],
    cwd: [
        (secret) => {
            fs.mkdirSync('/tmp/' + secret);
            process.chdir('/tmp/' + secret);
        },
        (mark) => isSecret(fs.readlinkSync('/proc/self/cwd'), mark),
    ],
    umask: [() => void process.umask(0o124), () => status('Umask') === '0124'],
    nice: [() => os.setPriority(7), () => os.getPriority() === 7],
    name: [
        (secret) => {
            // No longer than the command line that it overwrites.
            process.title = secret.slice(8, 16);
        },
        (mark) => {
            const part = backwards(mark).slice(8, 16);
            return process.title === part || read('/proc/self/cmdline').startsWith(part);
        },
    ],
    threads: [
        () => Promise.all([...Array(16)].map(() => fs.promises.readFile('/etc/passwd'))).then(() => {
            for (let i = 0; i < 8; i++) new worker.Worker('setInterval(() => {}, 1000)', { eval: true });
            return sleep(300);
        }),
        () => THREADS() > 16,
    ],
};

async function main(args) {
    const [plant, look] = cases[args.case];
    if (args.step === 'plant') {
        await plant(args.secret);
        return { planted: true };
    }
    const found = await look(args.secret);
    return { found: Boolean(found), where: String(found).slice(0, 100) };
}
