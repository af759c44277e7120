'use strict';
// Loads the code of an action and calls it.

const fs = require('fs');
const os = require('os');
const path = require('path');
const { execFileSync, spawn } = require('child_process');
const { pathToFileURL } = require('url');

class NodeActionRunner {
    constructor(main) {
        this.userScriptMain = main;
    }

    // What the action returned or resolved to. A rejection is an application error, a throw a failure.
    run(args) {
        return new Promise((resolve, reject) => {
            let result;
            try {
                result = this.userScriptMain(args);
            } catch (error) {
                reject(error);
                return;
            }
            Promise.resolve(result)
                .then((value) => resolve(value === undefined ? {} : value))
                .catch((error) => resolve({ error: error === undefined ? {} : plain(error) }));
        });
    }
}

// An Error as JSON can carry it.
function plain(error) {
    if (!(error instanceof Error)) return error;
    const { name, message, stack } = error;
    return Object.assign({ name, message, stack }, error);
}

function initializeActionHandler(message) {
    if (message.binary) return unpackAndLoad(message);
    const exports = {};
    const module = { exports }; // eslint-disable-line no-unused-vars
    const handler = eval(`(function(){
               ${message.code}
               try {
                   return ${message.main};
               } catch (e) {
                   if (e.name === 'ReferenceError') {
                       return module.exports.${message.main} || exports.${message.main};
                   } else throw e;
               }
           })()`);
    if (typeof handler !== 'function') throw `Action entrypoint '${message.main}' is not a function.`;
    return Promise.resolve(handler);
}

async function unpackAndLoad(message) {
    const archive = Buffer.from(message.code, 'base64');
    const directory = fs.mkdtempSync(path.join(process.cwd(), 'x'));
    const file = path.join(os.tmpdir(), path.basename(directory) + '.archive');
    fs.writeFileSync(file, archive);
    try {
        unpack(archive, file, directory);
    } finally {
        fs.rmSync(file, { force: true });
    }
    process.chdir(directory);
    return load(directory, message.main);
}

function unpack(archive, file, directory) {
    const quiet = { stdio: 'ignore' };
    if (archive[0] === 0x50 && archive[1] === 0x4b) {
        try {
            execFileSync('unzip', ['-qq', file, '-d', directory], quiet);
        } catch (error) {
            throw 'There was an error uncompressing the action Zip archive.';
        }
    } else if (archive[0] === 0x1f && archive[1] === 0x8b) {
        try {
            execFileSync('tar', ['-xzf', file, '-C', directory], quiet);
        } catch (error) {
            throw 'There was an error uncompressing the action Gzip archive.';
        }
    } else {
        throw 'There was an error uncompressing the action archive. The file type is unsupported';
    }
}

async function load(directory, main) {
    const description = path.join(directory, 'package.json');
    const hasDescription = fs.existsSync(description);
    let [moduleName, functionName] = ['', main];
    const dot = main.lastIndexOf('.');
    if (dot > 0) [moduleName, functionName] = [main.slice(0, dot), main.slice(dot + 1)];

    let entry;
    if (moduleName) {
        entry = path.join(directory, moduleName + '.js');
    } else if (hasDescription) {
        const { main: named, dependencies } = JSON.parse(fs.readFileSync(description, 'utf8'));
        entry = path.join(directory, named || 'index.js');
        // Started and not waited for, as the stock runtime does.
        if (dependencies && !fs.existsSync(path.join(directory, 'node_modules'))) {
            spawn('npm install', { shell: true, stdio: 'ignore' }).on('error', () => {});
        }
    } else if (fs.existsSync(path.join(directory, 'index.js'))) {
        entry = path.join(directory, 'index.js');
    } else {
        throw 'Zipped actions must contain either package.json or index.js at the root.';
    }

    let loaded;
    try {
        loaded = require(entry);
    } catch (error) {
        if (error.code !== 'ERR_REQUIRE_ESM') throw error;
        loaded = await import(pathToFileURL(entry));
    }
    const handler = functionName.split('.').reduce((object, name) => object && object[name], loaded);
    if (typeof handler !== 'function') throw `Action entrypoint '${functionName}' is not a function.`;
    return handler;
}

module.exports = { NodeActionRunner, initializeActionHandler };
