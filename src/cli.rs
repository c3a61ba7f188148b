//! The command line: raw flags → what to do; the admin API's client.
//!
//! Owns the flags, their help, what is printed, and the exit codes. `run` is the caller's: this module only says which
//! configuration it asks for. Every other command is done here, on a small runtime of its own.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Flags, Problems, Sources};

mod check;
mod client;
mod connect;
mod events;
pub mod logging;
mod operate;
mod status;

/// How the program ends, after `sysexits.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// An operator's request was refused, or the health check says no.
    Refused = 1,
    /// The command line or the configuration is wrong (`EX_USAGE`).
    Usage = 64,
    /// The admin server, or with `check --connect` a replica, cannot be reached (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// Pulsegate itself failed (`EX_SOFTWARE`).
    Software = 70,
    /// The system refused something: an address in use, a socket without permission (`EX_OSERR`).
    Os = 71,
    /// The admin server wants another token (`EX_NOPERM`).
    NoPermission = 77,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// For standard error; may have several lines.
    pub message: String,
}

impl Failure {
    /// A failure that ends the program with `exit`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure {
            exit,
            message: message.into(),
        }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Failure {
        let count = match problems.iter().count() {
            1 => "1 problem".to_owned(),
            count => format!("{count} problems"),
        };
        Failure::new(Exit::Usage, format!("{count} in the configuration\n{problems}"))
    }
}

impl From<io::Error> for Failure {
    /// Only standard output is written to with `?`. A reader that went away (`pulsegate status | head`) is no failure.
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Exit::Ok, ""),
            _ => Failure::new(Exit::Os, format!("cannot write to standard output: {error}")),
        }
    }
}

/// Application failover and failback for Active-Active Redis, as a sidecar.
///
/// Applications connect to Pulsegate as if it were their Redis. It forwards to the active replica, proves every replica
/// and replication link with heartbeats, and moves the traffic when a replica fails and when it is back.
#[derive(Parser, Debug)]
#[command(name = "pulsegate", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  pulsegate run --replica local=redis://10.0.0.1:6379 --replica remote=redis://10.1.0.1:6379
  pulsegate check --config pulsegate.toml --connect
  pulsegate status --watch
  pulsegate switch remote --reason 'maintenance in the local region' --wait

Exit codes: 0 done; 1 refused; 64 wrong command line or configuration; 69 not reachable; 70 internal error; \
71 refused by the system, e.g. an address in use; 77 wrong token";

const RUN_EXAMPLES: &str = "\
Examples:
  pulsegate run --config /etc/pulsegate/pulsegate.toml
  pulsegate run --replica local=redis://10.0.0.1:6379 --replica remote=redis://10.1.0.1:6379
  pulsegate run --config pulsegate.toml --profile fast --log-level debug
  PULSEGATE_REPLICA__0__PASSWORD_FILE=/run/secrets/redis \\
    pulsegate run --replica local=rediss://db.example:12000

Every key of the file can also be set in the environment: listener.bind is PULSEGATE_LISTENER__BIND, the url of the \
second replica is PULSEGATE_REPLICA__1__URL. Flags win over the environment, the environment over the file.

SIGTERM or SIGINT drains and stops; a second one stops at once. SIGHUP, or a change of the file, loads the \
configuration anew, all or nothing.";

const CHECK_EXAMPLES: &str = "\
Examples:
  pulsegate check --config pulsegate.toml
  pulsegate check --config pulsegate.toml --connect

Exit codes: 0 good; 64 not, with one line for each problem; 69 good, but --connect could not use a replica";

const STATUS_EXAMPLES: &str = "\
Examples:
  pulsegate status
  pulsegate status --watch
  pulsegate status --json | jq '.replicas[] | {name, health, fitness}'

Exit codes: 0 shown; 69 the admin server cannot be reached";

const SWITCH_EXAMPLES: &str = "\
Examples:
  pulsegate switch remote
  pulsegate switch remote --reason 'kernel update in eu-west' --wait
  pulsegate switch local --admin http://10.0.0.5:9379 --token-file /run/secrets/pulsegate

Exit codes: 0 done; 1 refused, with the reason; 69 the admin server cannot be reached; 77 wrong or missing token";

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the sidecar
    #[command(after_help = RUN_EXAMPLES)]
    Run(ConfigArgs),
    /// Check a configuration: every problem at once, or a summary of what it means
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// The configuration.
        #[command(flatten)]
        config: ConfigArgs,
        /// Also connect to every replica: TLS, AUTH, PING, a write, publish and subscribe
        #[arg(long)]
        connect: bool,
    },
    /// Show replicas, links and recent switches of a running sidecar
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        /// Where it runs.
        #[command(flatten)]
        admin: AdminArgs,
        /// Print the JSON of /status as it is, one object a line
        #[arg(long)]
        json: bool,
        /// Show it again every second until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Move the traffic to REPLICA: held, fenced, then switched
    #[command(after_help = SWITCH_EXAMPLES)]
    Switch {
        /// Where the traffic shall go.
        replica: String,
        /// The operator's own words, for the log and /status
        #[arg(long, default_value = "")]
        reason: String,
        /// Where and how to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Move to REPLICA and stay there, whatever happens, until unpinned
    Pin {
        /// Where the traffic shall stay.
        replica: String,
        /// Where and how to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Take the pin away: Pulsegate chooses again
    Unpin(AskArgs),
    /// Return to the preferred replica now, without waiting for the rest of the grace
    Failback(AskArgs),
    /// Hold all commands (each for hold.timeout at most) until resumed
    Hold(AskArgs),
    /// End a hold
    Resume(AskArgs),
    /// Print what happened lately: health, links, switches
    Events {
        /// Where it runs.
        #[command(flatten)]
        admin: AdminArgs,
        /// Print the last few and go on until interrupted
        #[arg(long, short)]
        follow: bool,
        /// Print each event as its JSON object, one a line
        #[arg(long)]
        json: bool,
    },
    /// Ask a running sidecar whether it is ready: exit 0 if it is, 1 if not (for container health checks)
    Healthcheck(AdminArgs),
}

/// Where the configuration comes from.
#[derive(Args, Clone, Default, Debug)]
pub struct ConfigArgs {
    /// The configuration file (TOML)
    #[arg(
        long,
        short,
        value_name = "FILE",
        env = "PULSEGATE_CONFIG",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,
    /// Where applications connect: IP:PORT or unix:/PATH; may be given again
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// A replica; given in order of preference. Replaces the list of the file; what the file says of the same name stays
    #[arg(long, value_name = "NAME=URL")]
    pub replica: Vec<String>,
    /// How soon a silent replica is called down: fast, balanced or patient
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Where the admin server listens
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<String>,
    /// Let applications connect from other machines although nobody is asked for a password
    #[arg(long)]
    pub allow_open: bool,
    /// A level (error, warn, info, debug, trace) or a filter such as info,pulsegate::proxy=debug
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl ConfigArgs {
    /// The flags, the file they name, and `environment`.
    pub fn sources(self, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Sources {
        Sources {
            file: self.config,
            environment: environment.into_iter().collect(),
            flags: Flags {
                listen: self.listen,
                replicas: self.replica,
                profile: self.profile,
                admin: self.admin,
                allow_open: self.allow_open,
                log_level: self.log_level,
                log_format: self.log_format,
            },
        }
    }
}

/// Where a running sidecar's admin server is.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// The admin server [default: PULSEGATE_ADMIN__BIND, or http://127.0.0.1:9379]
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// The file with the admin token [default: PULSEGATE_ADMIN__TOKEN_FILE, if set]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// How to ask a running sidecar for something.
#[derive(Args, Clone, Debug)]
pub struct AskArgs {
    /// Where it is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Return only when /status shows that it is done
    #[arg(long)]
    pub wait: bool,
}

impl Cli {
    /// Reads the command line. Prints help, the version or what is wrong with it, and says how to end then.
    ///
    /// # Errors
    /// How to end: [`Exit::Ok`] after help and version, else [`Exit::Usage`].
    pub fn from_command_line() -> Result<Cli, Exit> {
        Cli::try_parse().map_err(|error| {
            // Nothing is left to say when not even this can be written.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage } else { Exit::Ok }
        })
    }
}

/// Does every command but `run`.
///
/// # Errors
/// What to print, and how to end.
pub fn execute(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Os, format!("cannot start: {error}")))?;
    runtime.block_on(async {
        match command {
            Command::Run(_) => Err(Failure::new(Exit::Software, "run is not a client's command")),
            Command::Check { config, connect } => {
                check::check(&config.sources(std::env::vars_os()), connect).await
            }
            Command::Status { admin, json, watch } => status::status(&admin, json, watch).await,
            Command::Switch { replica, reason, ask } => {
                operate::ask(&ask, &operate::Verb::Switch { to: replica, reason }).await
            }
            Command::Pin { replica, ask } => operate::ask(&ask, &operate::Verb::Pin { replica }).await,
            Command::Unpin(ask) => operate::ask(&ask, &operate::Verb::Unpin).await,
            Command::Failback(ask) => operate::ask(&ask, &operate::Verb::Failback).await,
            Command::Hold(ask) => operate::ask(&ask, &operate::Verb::Hold).await,
            Command::Resume(ask) => operate::ask(&ask, &operate::Verb::Resume).await,
            Command::Events { admin, follow, json } => events::events(&admin, follow, json).await,
            Command::Healthcheck(admin) => operate::healthcheck(&admin).await,
        }
    })
}

/// Says what failed, on standard error. Lines after the first are left as they are: those of a configuration begin
/// with file and line.
pub fn report(failure: &Failure) {
    if !failure.message.is_empty() {
        complain("error", &failure.message);
    }
}

fn warn(text: &str) {
    complain("warning", text);
}

fn complain(kind: &str, text: &str) {
    // With standard error closed there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "pulsegate: {kind}: {text}");
}

/// Prints `text` and a line's end.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}
