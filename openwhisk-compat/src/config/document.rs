//! `docs/configuration.md`, from the declarations.

use std::fmt::Write as _;

use super::table::{GROUPS, WITHOUT_EFFECT};
use super::{Declaration, Origin};

const INTRODUCTION: &str = "\
# Configuration

This file is made from the declarations in `openwhisk-compat/src/config/table.rs`; a test compares the two.
Run `UPDATE_DOCS=1 cargo test -p openwhisk-compat configuration_document` after changing a declaration.

An operator who moves from upstream's invoker keeps the environment as it is.
All mistakes are reported at once when the invoker starts, each with the variable and the offending value; the invoker then exits with status 1.

## How values are found

There are two families of upstream's and one of ours.

- *Flat properties*: an environment variable (the key in capitals, `.` as `_`), or a line `key=value` of a file `whisk.properties` in the working directory or above it. The file wins.
- *The tree* (`whisk....`): a file named by `OPENWHISK_CONFIG` or encoded in base-64 in `OPENWHISK_ENCODED_CONFIG`, then `CONFIG_` variables, which win. In a variable's name `_` parts the path, and `camelCase` stands for `kebab-case`: `CONFIG_whisk_containerPool_userMemory` is `whisk.container-pool.user-memory`. A part that begins with a capital is kept. Of HOCON the file may use everything but `include`, `+=` and substitutions.
- *Ours*: variables that begin with `REWIND_`.

Empty values count as absent. A value of the tree that begins with `$` names the variable to take the value from.
Elements of a list end in their index: `CONFIG_whisk_containerFactory_containerArgs_extraEnvVars_0`.
Variables that begin with `CONFIG_whisk_` or `REWIND_` and are not listed here are named in the log once.

*Sizes* are HOCON's: `256 m`, `256 MiB`, `1g` count by 1024; beware that `256 MB` is 256 million bytes, as it is for upstream.
*Durations*: `10 minutes`, `50 ms`, `1m`, `2 h`.

## Command line

`rewind invoker` takes upstream's arguments: `--uniqueName NAME`, `--displayedName NAME`, `--id N`, `--overwriteId N`; and ours: `--isolation`, `--engine`, which win over their variables.
";

/// The whole document.
pub fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (heading, declarations) in GROUPS {
        let _ = write!(
            text,
            "\n## {}\n\n| Variable | Path | Form | Default | Meaning |\n|---|---|---|---|---|\n",
            heading.trim()
        );
        for declaration in *declarations {
            text.push_str(&row(declaration));
        }
    }
    text.push_str("\n## Taken without effect\n\nDeployments set these; the invoker accepts them and does not act on them.\n\n| Variable | Why |\n|---|---|\n");
    for (name, why) in WITHOUT_EFFECT {
        let _ = writeln!(text, "| `{name}` | {why} |");
    }
    text
}

fn row(declaration: &Declaration) -> String {
    let path = match declaration.origin {
        Origin::Flat => format!("`{}`", declaration.path),
        Origin::Tree => format!("`whisk.{}`", declaration.path),
        Origin::Env => String::new(),
    };
    let default = match declaration.default {
        Some("") => "empty".to_owned(),
        Some(text) => text.split(", ").map(|part| format!("`{part}`")).collect::<Vec<_>>().join(", "),
        None if declaration.optional => "absent".to_owned(),
        None => "**required**".to_owned(),
    };
    let meaning = declaration.doc.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    format!(
        "| `{}` | {path} | {} | {default} | {} |\n",
        declaration.variable(),
        (declaration.form)(),
        meaning.trim()
    )
}
