'use strict';
// An action server that answers as the stock Node runtime does (contract 5.10, column "Node proxy"):
// status codes, error texts, headers, log lines and the sentinels that end an activation's log.
// No framework: what express adds to an answer (X-Powered-By, ETag) is added here.

const http = require('http');
const crypto = require('crypto');
const { NodeActionRunner, initializeActionHandler } = require('./runner');

const SENTINEL = 'XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n';
const BODY_LIMIT = 48 * 1024 * 1024;
const concurrent = process.env.__OW_ALLOW_CONCURRENT === 'true';

// `stopped` is for good: an action that threw, or never loaded, is not asked again.
let status = 'ready';
let initialized = false;
let runner;

class Refusal extends Error {
    constructor(code, message) {
        super(message);
        this.code = code;
    }
}

function writeSentinels() {
    process.stdout.write(SENTINEL);
    process.stderr.write(SENTINEL);
}

function internal(message) {
    console.error('Internal system error:', message);
    return new Refusal(403, message);
}

async function init(body) {
    if (initialized) throw internal('Cannot initialize the action more than once.');
    if (status !== 'ready') throw internal(`System not ready, status is ${status}.`);
    const message = (body && body.value) || {};
    if (!message.main || !message.code || typeof message.main !== 'string' || typeof message.code !== 'string') {
        throw new Refusal(403, 'Missing main/no code to execute.');
    }
    status = 'starting';
    if (message.env && typeof message.env === 'object') {
        for (const [name, value] of Object.entries(message.env)) {
            process.env[name] = typeof value === 'string' ? value : value ? JSON.stringify(value) : '';
        }
    }
    try {
        runner = new NodeActionRunner(await initializeActionHandler(message));
    } catch (error) {
        console.error('Error during initialization:', error);
        writeSentinels();
        status = 'stopped';
        const text = error && error.stack ? String(error.stack) : String(error);
        throw new Refusal(502, `Initialization has failed due to: ${text}`);
    }
    initialized = true;
    status = 'ready';
    return { OK: true };
}

async function run(body) {
    if (!initialized) throw internal('System not initialized.');
    if (status !== 'ready') throw internal(`System not ready, status is ${status}.`);
    if (!concurrent) status = 'running';
    const message = body || {};
    for (const [name, value] of Object.entries(message)) {
        if (typeof value === 'string' && name !== 'value') process.env['__OW_' + name.toUpperCase()] = value;
    }
    const args = message.value === undefined ? {} : message.value;
    if (typeof args !== 'object') {
        // As the stock runtime: the status stays "running" for ever.
        throw internal(`Internal system error: the argument must be a dictionary but has type '${typeof args}'.`);
    }
    let result;
    try {
        result = await runner.run(args);
    } catch (error) {
        console.error(error);
        writeSentinels();
        status = 'stopped';
        throw new Refusal(502, `An error has occurred: ${error}`);
    }
    if (status !== 'stopped') status = 'ready';
    if (typeof result !== 'object') {
        console.error(`Result must be of type object but has type "${typeof result}":`, result);
        writeSentinels();
        throw new Refusal(502, 'The action did not return a dictionary.');
    }
    writeSentinels();
    return result;
}

function answer(request, response, code, value) {
    let text;
    try {
        text = JSON.stringify(value);
    } catch (error) {
        console.error('[wrapEndpoint]', 'invalid errored promise', JSON.stringify(error));
        code = 500;
        text = JSON.stringify({ error: 'Internal error.' });
    }
    const body = Buffer.from(text);
    const digest = crypto.createHash('sha1').update(body).digest('base64').substring(0, 27);
    response.writeHead(code, {
        'X-Powered-By': 'Express',
        'Content-Type': 'application/json; charset=utf-8',
        'Content-Length': body.length,
        ETag: `W/"${body.length.toString(16)}-${digest}"`,
    });
    response.end(request.method === 'HEAD' ? undefined : body);
}

const badRequest = (request, response) => answer(request, response, 500, { error: 'Bad request.' });

function parse(chunks) {
    const text = Buffer.concat(chunks).toString('utf8');
    if (text === '') return {};
    // Only objects and arrays count as JSON here, as with express' strict parser.
    if (!/^[\x20\x09\x0a\x0d]*[[{]/.test(text)) throw new SyntaxError('not an object or array');
    return JSON.parse(text);
}

// Paths are matched as express matches them: any case, one trailing slash.
const endpoints = { '/init': init, '/run': run };

const server = http.createServer((request, response) => {
    const path = request.url.split('?')[0].toLowerCase();
    const endpoint = request.method === 'POST' && endpoints[path.length > 1 ? path.replace(/\/$/, '') : path];
    if (!endpoint) {
        request.resume();
        badRequest(request, response);
        return;
    }
    const chunks = [];
    let size = 0;
    request.on('data', (chunk) => {
        size += chunk.length;
        if (size <= BODY_LIMIT) chunks.push(chunk);
        else chunks.length = 0;
    });
    request.on('end', () => {
        let body;
        try {
            if (size > BODY_LIMIT) throw new RangeError('body too large');
            body = parse(chunks);
        } catch (error) {
            console.log(undefined); // what the stock runtime prints here
            badRequest(request, response);
            return;
        }
        endpoint(body)
            .then((value) => answer(request, response, 200, value))
            .catch((refusal) => {
                if (!(refusal instanceof Refusal)) throw refusal;
                answer(request, response, refusal.code, { error: refusal.message });
            });
    });
});
server.timeout = 0;
server.requestTimeout = 0;
server.listen(8080, '0.0.0.0');
