//! Dispatch only. Exit codes: 0 ok, 1 runtime, 64 usage, 78 configuration.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use loupe::cmd;
use loupe::observe::log::{self, LogFormat};

/// Edge vision inspection: cameras to PASS, FAIL or HOLD, proved on the device and delivered exactly once.
#[derive(Debug, Parser)]
#[command(name = "loupe", version, arg_required_else_help = true, propagate_version = true)]
struct Cli {
    /// How much to log to stderr: error, warn, info, debug or trace, or a filter such as `info,loupe::uplink=debug`;
    /// the environment's LOUPE_LOG outranks it.
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    /// How a log line looks.
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: inspect what the stations' sources bring, until stopped.
    Run(cmd::run::Args),
    /// Show Loupe at work on the bundled samples.
    Demo(cmd::demo::Args),
    /// Check a configuration and this machine before the daemon starts.
    Check(cmd::check::Args),
    /// See what the configuration of this device was, and what changed.
    Config(cmd::config::Args),
    /// Inspect images, folders or videos once and print a result for each.
    Inspect(cmd::inspect::Args),
    /// Build and evaluate memory banks of good surfaces (PatchCore).
    Bank(cmd::bank::Args),
    /// Build, evaluate and verify part indexes.
    Index(cmd::index::Args),
    /// See what a detector finds, and measure it against annotations.
    Detect(cmd::detect::Args),
    /// Look at a model file, prove that it runs here as it was recorded, and measure it.
    Model(cmd::model::Args),
    /// Say of an inspected item what it really is, and see what was said.
    Review(cmd::review::Args),
    /// Register the people who may sign reviews and feedback.
    People(cmd::people::Args),
    /// Keep what people think of inspections, and what they did about them.
    Feedback(cmd::feedback::Args),
    /// Import and show the catalogue of parts, colours and look-alikes.
    Catalog(cmd::catalog::Args),
    /// Count inspected trays against a kit.
    Kit(cmd::kit::Args),
    /// Show and correct the stock of parts.
    Inventory(cmd::inventory::Args),
    /// See and send what the central database has not yet acknowledged.
    Outbox(cmd::outbox::Args),
    /// Keep a device in one file, prove it, and put it back.
    Backup(cmd::backup::Args),
    /// See and keep within bounds what this device stores; place legal holds; check the pictures.
    Storage(cmd::storage::Args),
    /// See and fetch what the centre wants of this device.
    Provisioning(cmd::provisioning::Args),
    /// Tell sites what to use: catalogue, kits and recipes, at the centre.
    Publish(cmd::publish::Args),
    /// Manage the central PostgreSQL database.
    Db(cmd::db::Args),
    /// Prove that the central audit was not touched.
    Audit(cmd::audit::Args),
    /// Print a shell completion script.
    Completions {
        /// The shell: bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
}

/// What `println!` panics with when the reader of a pipe has gone.
const CLOSED_PIPE: &str = "failed printing to stdout: Broken pipe";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let is_fault = error.use_stderr();
            // A closed pipe is the reader's choice.
            let _printed = error.print();
            return if is_fault { ExitCode::from(cmd::EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let is_daemon = matches!(cli.command, Command::Run(_));
    if !is_daemon {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // `loupe … | head`: the reader has seen enough, which is no fault.
            if panic.payload_as_str().is_some_and(|what| what.starts_with(CLOSED_PIPE)) {
                std::process::exit(0);
            }
            told(panic);
        }));
    }
    let default_level = if is_daemon { "info" } else { "warn" };
    if let Err(error) = log::init(cli.log_format, Some(cli.log.as_deref().unwrap_or(default_level))) {
        eprintln!("loupe: {error}");
        return ExitCode::from(cmd::EXIT_USAGE);
    }
    if let Err(error) = loupe::failpoint::arm() {
        eprintln!("loupe: {error}");
        return ExitCode::from(cmd::EXIT_USAGE);
    }
    let result = match cli.command {
        Command::Run(args) => cmd::run::run(args),
        Command::Demo(args) => cmd::demo::run(args),
        Command::Check(args) => cmd::check::run(args),
        Command::Config(args) => cmd::config::run(args),
        Command::Inspect(args) => cmd::inspect::run(args),
        Command::Bank(args) => cmd::bank::run(args),
        Command::Index(args) => cmd::index::run(args),
        Command::Detect(args) => cmd::detect::run(args),
        Command::Model(args) => cmd::model::run(args),
        Command::Review(args) => cmd::review::run(args),
        Command::People(args) => cmd::people::run(args),
        Command::Feedback(args) => cmd::feedback::run(args),
        Command::Catalog(args) => cmd::catalog::run(args),
        Command::Kit(args) => cmd::kit::run(args),
        Command::Inventory(args) => cmd::inventory::run(args),
        Command::Outbox(args) => cmd::outbox::run(args),
        Command::Backup(args) => cmd::backup::run(args),
        Command::Storage(args) => cmd::storage::run(args),
        Command::Provisioning(args) => cmd::provisioning::run(args),
        Command::Publish(args) => cmd::publish::run(args),
        Command::Db(args) => cmd::db::run(args),
        Command::Audit(args) => cmd::audit::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "loupe", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            let exit_code = cmd::exit_code(&error);
            eprintln!("loupe: {}", in_words(&error));
            ExitCode::from(exit_code)
        }
    }
}

/// The chain of causes on one line; a cause that the message above it already quotes is not said twice.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if words.is_empty() {
            words = cause;
        } else if !words.contains(&cause) {
            words.push_str(": ");
            words.push_str(&cause);
        }
    }
    words
}
