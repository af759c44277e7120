//! The command line. `rewind invoker` takes upstream's options as they are (contract 1.1).

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};
use openwhisk_compat::config::{Engine, Isolation};

/// An OpenWhisk invoker that rolls every container back after every activation.
#[derive(Debug, Parser)]
#[command(name = "rewind", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the invoker. Everything else is configured by environment variables, see docs/configuration.md.
    Invoker(InvokerArgs),
    /// Say what this machine can do, what is missing and how to get it.
    Check(CheckArgs),
}

/// Options of `rewind invoker`. A blank argument counts as absent.
#[derive(Debug, Clone, Default, Args)]
pub struct InvokerArgs {
    /// Fixed id; without it, ZooKeeper assigns one to the unique name.
    #[arg(long, value_name = "N", value_parser = number)]
    id: Option<Blank<u32>>,
    /// Key for the assignment of an id, and first part of the names of containers.
    #[arg(long = "uniqueName", value_name = "NAME", value_parser = text)]
    unique_name: Option<Blank<String>>,
    /// A name for people.
    #[arg(long = "displayedName", value_name = "NAME", value_parser = text)]
    displayed_name: Option<Blank<String>>,
    /// With a unique name: force this id in ZooKeeper.
    #[arg(long = "overwriteId", value_name = "N", value_parser = number)]
    overwrite_id: Option<Blank<u32>>,
    /// What separates two requests in one container: rewind, single-use or none [env: REWIND_ISOLATION].
    #[arg(long, value_name = "MODE", value_parser = choice::<Isolation>)]
    isolation: Option<Blank<Isolation>>,
    /// What puts memory back: auto, pagemap or none [env: REWIND_ENGINE].
    #[arg(long, value_name = "ENGINE", value_parser = choice::<Engine>)]
    engine: Option<Blank<Engine>>,
}

/// Options of `rewind check`: those of the invoker whose start is in question.
#[derive(Debug, Clone, Default, Args)]
pub struct CheckArgs {
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
    /// As for `rewind invoker`.
    #[command(flatten)]
    pub invoker: InvokerArgs,
}

impl InvokerArgs {
    /// `--id`.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.id.as_ref().and_then(|id| id.0)
    }

    /// `--uniqueName`.
    #[must_use]
    pub fn unique_name(&self) -> Option<&str> {
        self.unique_name.as_ref().and_then(|name| name.0.as_deref())
    }

    /// `--displayedName`.
    #[must_use]
    pub fn displayed_name(&self) -> Option<&str> {
        self.displayed_name.as_ref().and_then(|name| name.0.as_deref())
    }

    /// `--overwriteId`.
    #[must_use]
    pub fn overwrite_id(&self) -> Option<u32> {
        self.overwrite_id.as_ref().and_then(|id| id.0)
    }

    /// Whether any of the options that the id follows from was given.
    #[must_use]
    pub fn names_an_id(&self) -> bool {
        self.id().is_some() || self.unique_name().is_some()
    }

    /// `--isolation`, which wins over the environment.
    #[must_use]
    pub fn isolation(&self) -> Option<Isolation> {
        self.isolation.as_ref().and_then(|mode| mode.0)
    }

    /// `--engine`, which wins over the environment.
    #[must_use]
    pub fn engine(&self) -> Option<Engine> {
        self.engine.as_ref().and_then(|engine| engine.0)
    }
}

/// An argument's value; `None` for a blank one, as deployments pass for what is not set.
#[derive(Debug, Clone)]
struct Blank<T>(Option<T>);

fn text(argument: &str) -> Result<Blank<String>, String> {
    Ok(Blank((!argument.trim().is_empty()).then(|| argument.to_owned())))
}

fn number(argument: &str) -> Result<Blank<u32>, String> {
    choice(argument)
}

fn choice<T>(argument: &str) -> Result<Blank<T>, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    match argument.trim() {
        "" => Ok(Blank(None)),
        argument => match argument.parse::<T>() {
            Ok(value) => Ok(Blank(Some(value))),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Reads the command line. `Err` is the status to exit with, after what there is to say was said.
///
/// # Errors
/// 0 after `--help` and `--version`, 1 for a mistake (clap's own would be 2; upstream's is 1).
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, u8> {
    Cli::try_parse_from(arguments).map_err(|error| {
        let mistake = error.use_stderr();
        if mistake {
            eprintln!("Error processing command line arguments");
        }
        // Nothing is left to be done if nobody listens.
        let _ = error.print();
        u8::from(mistake)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invoker(arguments: &[&str]) -> Result<InvokerArgs, u8> {
        let all = ["rewind", "invoker"].iter().chain(arguments).map(OsString::from);
        match parse(all)?.command {
            Command::Invoker(arguments) => Ok(arguments),
            Command::Check(_) => panic!("not check"),
        }
    }

    #[test]
    fn upstreams_options_are_taken_as_they_are() {
        let ansible = invoker(&["--id", "3", "--uniqueName", "3"]).unwrap();
        assert_eq!((ansible.id(), ansible.unique_name()), (Some(3), Some("3")));
        let helm = invoker(&["--uniqueName", "node-1", "--displayedName", "10.0.0.7", "--overwriteId", "2"])
            .unwrap();
        assert_eq!(
            (helm.id(), helm.overwrite_id(), helm.displayed_name()),
            (None, Some(2), Some("10.0.0.7"))
        );
    }

    #[test]
    fn blank_counts_as_absent() {
        let arguments = invoker(&["--id", "", "--uniqueName", " ", "--isolation", ""]).unwrap();
        assert_eq!((arguments.id(), arguments.unique_name(), arguments.isolation()), (None, None, None));
    }

    #[test]
    fn ours_are_checked() {
        let arguments = invoker(&["--isolation", "single-use", "--engine", "none"]).unwrap();
        assert_eq!(arguments.isolation(), Some(Isolation::SingleUse));
        assert_eq!(arguments.engine(), Some(Engine::None));
    }

    #[test]
    fn mistakes_exit_with_1() {
        for mistake in
            [&["--id", "-1"][..], &["--id", "x"], &["0"], &["--what"], &["--isolation", "some"], &["--id"]]
        {
            assert_eq!(invoker(mistake).unwrap_err(), 1, "{mistake:?}");
        }
        assert_eq!(parse(["rewind", "--version"].map(OsString::from)).unwrap_err(), 0);
    }
}
