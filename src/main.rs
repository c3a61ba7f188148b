//! The `pulsegate` program: command line → logging → configuration → app → drain.

use std::process::ExitCode;

use pulsegate::cli::{self, Cli, Command, ConfigArgs, Exit, Failure, logging};
use pulsegate::{app, config};

fn main() -> ExitCode {
    let command = match Cli::from_command_line() {
        Ok(cli) => cli.command,
        Err(exit) => return exit.into(),
    };
    let done = match command {
        Command::Run(args) => run(args),
        other => cli::execute(other),
    };
    match done {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            cli::report(&failure);
            failure.exit.into()
        }
    }
}

/// Serves until a signal says stop; returns once everything is drained.
fn run(args: ConfigArgs) -> Result<(), Failure> {
    let sources = args.sources(std::env::vars_os());
    let loaded = config::load(&sources)?;
    let level = logging::start(&loaded.config.log)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    // What the app fails with is the system's refusal: the configuration was good.
    app::run(loaded, sources, level).map_err(|error| Failure::new(Exit::Os, error.to_string()))
}
