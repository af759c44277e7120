// Loads every npm package it finds beside itself, and uses and spoils some of them.
const fs = require('fs');
const os = require('os');
const path = require('path');

const root = path.join(__dirname, 'node_modules');
const packages = {};
for (const name of fs.readdirSync(root)) {
    try {
        packages[name] = require(path.join(root, name));
    } catch (unloadable) {
        // Without what it was built with, such as a native part.
    }
}

function main({ n }) {
    const found = [];
    for (const [name, loaded] of Object.entries(packages)) {
        if (loaded && loaded.residue !== undefined) found.push(name);
        try {
            loaded.residue = n;
        } catch (frozen) {
            // It keeps nothing.
        }
    }
    const merged = packages.extend({ a: 1 }, { b: 2 });
    return {
        found,
        merged,
        packages: Object.keys(packages).length,
        modules: Object.keys(require.cache).length,
        host: os.hostname(),
    };
}

exports.main = main;
