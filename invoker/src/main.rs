//! The program `rewind`.

use std::io::Write as _;
use std::process::ExitCode;

use openwhisk_compat::config::{Isolation, LogFormat};
use rewind_invoker::check::{self, Input};
use rewind_invoker::cli::{self, CheckArgs, Command};
use rewind_invoker::errors::chain;
use rewind_invoker::id::IdChoice;
use rewind_invoker::privileges;
use rewind_invoker::settings::Settings;
use rewind_invoker::start;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(status) => return ExitCode::from(status),
    };
    match cli.command {
        Command::Invoker(args) => {
            let settings = match Settings::from_process(&args) {
                Ok(settings) => settings,
                Err(mistakes) => {
                    eprintln!("Bad configuration, cannot start.");
                    for mistake in &mistakes.0 {
                        eprintln!("  {mistake}");
                    }
                    return ExitCode::FAILURE;
                }
            };
            begin_log(&settings.config.rewind.log, settings.config.rewind.log_format);
            give_up_privileges(settings.isolation);
            in_runtime(start::run(settings))
        }
        Command::Check(args) => check_machine(&args),
    }
}

/// Before there is a second thread: capabilities belong to threads.
fn give_up_privileges(isolation: Isolation) {
    match privileges::missing(isolation) {
        Ok(missing) => {
            for need in missing {
                if need.essential {
                    tracing::error!(capability = %need.capability, "absent, needed to {}", need.purpose);
                } else {
                    tracing::warn!(capability = %need.capability, "absent, needed to {}", need.purpose);
                }
            }
        }
        Err(error) => tracing::warn!(%error, "capabilities cannot be read"),
    }
    match privileges::drop_unneeded(isolation) {
        Ok(dropped) => tracing::info!("capabilities: {dropped}"),
        Err(error) => tracing::warn!(%error, "capabilities cannot be dropped"),
    }
}

fn check_machine(args: &CheckArgs) -> ExitCode {
    let mut input = Input::from_process();
    let asked = &args.invoker;
    input.isolation = asked.isolation().unwrap_or(input.isolation);
    input.engine = asked.engine().unwrap_or(input.engine);
    input.id = asked.names_an_id().then(|| IdChoice {
        id: asked.id(),
        unique_name: asked.unique_name().map(str::to_owned),
        overwrite: asked.overwrite_id(),
        zookeeper_hosts: input
            .settings
            .as_ref()
            .ok()
            .and_then(|config| config.openwhisk.zookeeper_hosts.clone()),
    });
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot check: {error}");
            return ExitCode::FAILURE;
        }
    };
    let report = runtime.block_on(check::check(&input));
    runtime.shutdown_background();
    let text = if args.json { format!("{}\n", report.json()) } else { report.to_string() };
    // Whoever reads through a pipe may stop reading; the status still tells.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if report.starts() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn begin_log(filter: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("REWIND_LOG: `{filter}` is not a filter ({error}), logging `info`");
        EnvFilter::new("info")
    });
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

fn in_runtime(work: impl Future<Output = Result<(), start::StartError>>) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(worker_threads()).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(work);
    // A blocking call that hangs (a bus that does not answer) must not keep the process alive.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error: &(dyn std::error::Error + 'static) = &*error;
            tracing::error!("cannot start: {}", chain(error));
            eprintln!("cannot start: {}", chain(error));
            ExitCode::FAILURE
        }
    }
}

/// One thread carries several thousand activations a second, and every further one costs wake-ups: half of the
/// machine's processors, 8 at most, the rest is for the containers.
fn worker_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (processors / 2).clamp(1, 8)
}
