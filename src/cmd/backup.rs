//! `loupe backup`: keep a device, prove what was kept, and put it back.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args as ClapArgs, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::Failure;
use crate::backup::{
    BackupError, Checked, Created, MemberKind, Plan, RestoreOptions, RestoreReport, check, create, restore,
};
use crate::clock::Clock;
use crate::config::Config;
use crate::uplink::Secret;

/// The environment variable read where no passphrase file is given.
const PASSPHRASE_VARIABLE: &str = "LOUPE_PASSPHRASE";

/// Keep a device in one file, prove it, and put it back on the same or another machine.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write ledger, pictures, configuration, recipes, banks, indexes and models into one file. The daemon may be
    /// running. Ends with 1 where the ledger names pictures that are gone: all the rest is in the file.
    Create(CreateArgs),
    /// Read all of a backup and prove it: every digest, the ledger page by page, its outbox, its pictures.
    Verify(VerifyArgs),
    /// Put a device back, everything to the place it came from. The daemon must not be running.
    Restore(RestoreArgs),
}

#[derive(Debug, ClapArgs)]
struct CreateArgs {
    /// File to write; must not be there.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The daemon's configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/loupe/loupe.toml")]
    config: PathBuf,
    /// Back up this state folder alone, without configuration, recipes and models.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    state: Option<PathBuf>,
    /// Also keep the files with secrets (database address, keys), encrypted with a passphrase.
    #[arg(long)]
    with_secrets: bool,
    /// File whose first line is the passphrase, at least 12 characters; default: the variable LOUPE_PASSPHRASE.
    #[arg(long, value_name = "FILE", requires = "with_secrets")]
    passphrase_file: Option<PathBuf>,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
struct VerifyArgs {
    /// The backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Folder with room for the ledger, which is unpacked and removed again; default: the backup's own.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Try the passphrase on the secrets: a file whose first line it is.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
struct RestoreArgs {
    /// The backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Folder that stands for `/`: another disk, or a trial; default: the places that everything came from.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// State folder, where it is to be another than the backup's.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Restore ledger and pictures only; leave configuration, recipes, banks, indexes and models as they are.
    #[arg(long)]
    state_only: bool,
    /// Restore over what is there; that is moved aside under another name, never deleted.
    #[arg(long)]
    force: bool,
    /// Put the secrets back too: a file whose first line is their passphrase; default: the variable LOUPE_PASSPHRASE.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When the configuration is wrong, a backup is not whole, or the disk refuses.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Create(args) => run_create(&args),
        Command::Verify(args) => run_verify(&args),
        Command::Restore(args) => run_restore(&args),
    }
}

fn run_create(args: &CreateArgs) -> anyhow::Result<()> {
    let plan = match &args.state {
        Some(state) => Plan::of_state(state),
        None => {
            let config = Config::load(&args.config).map_err(|error| Failure::config(error.into()))?;
            Plan::of_config(&args.config, &config)
        }
    }
    .map_err(explain)?;
    let passphrase = if args.with_secrets { Some(passphrase(args.passphrase_file.as_deref())?) } else { None };
    let passphrase = match (passphrase, args.with_secrets) {
        (Some(None), true) => {
            let missing = anyhow::anyhow!("--with-secrets needs --passphrase-file FILE, or {PASSPHRASE_VARIABLE}");
            return Err(Failure::usage(missing).into());
        }
        (found, _) => found.flatten(),
    };
    let bar = progress_bar();
    let created = create(&plan, &args.out, passphrase.as_ref(), &Clock::system(), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let created = created.map_err(explain)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&created)?);
    } else {
        print_created(&created);
    }
    let missing = created.pictures_missing.len();
    anyhow::ensure!(
        missing == 0,
        "{} is whole, but {missing} pictures that the ledger names were gone or changed on this device",
        created.path.display()
    );
    Ok(())
}

fn print_created(created: &Created) {
    println!("{} ({} bytes)", created.path.display(), created.size_bytes);
    println!(
        "ledger {} bytes, {} pictures, {} other files",
        created.ledger_bytes, created.picture_count, created.file_count
    );
    for path in &created.secrets_left_out {
        println!("left out: {} (a secret; --with-secrets keeps it encrypted)", path.display());
    }
    for path in &created.secrets_sealed {
        println!("encrypted: {}", path.display());
    }
    if created.is_config_redacted {
        println!("the DSN was cut out of the configuration's copy");
    }
    if created.pictures_shed > 0 {
        println!("{} pictures were shed by retention meanwhile; the backup's ledger says so", created.pictures_shed);
    }
    for path in created.pictures_missing.iter().take(20) {
        println!("missing on this device: {path}");
    }
    println!("prove it by `loupe backup verify {}`", created.path.display());
}

fn run_verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let parent = args.file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let scratch = args.scratch.as_deref().unwrap_or(parent);
    let passphrase = args.passphrase_file.as_deref().map(|file| passphrase(Some(file))).transpose()?.flatten();
    let bar = progress_bar();
    let checked = check(&args.file, scratch, passphrase.as_ref(), &Clock::system(), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let checked = checked.map_err(explain)?;
    if args.json {
        let mut document = serde_json::to_value(&checked)?;
        if let Some(manifest) = document.get_mut("manifest").and_then(serde_json::Value::as_object_mut) {
            manifest.remove("members");
        }
        document["holds"] = checked.proof.holds().into();
        document["member_count"] = checked.manifest.members.len().into();
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print_checked(&args.file, &checked);
    }
    let faults = checked.proof.fault_count;
    anyhow::ensure!(
        faults == 0,
        "{} is undamaged, but the ledger in it does not add up: {faults} faults",
        args.file.display()
    );
    Ok(())
}

fn print_checked(file: &Path, checked: &Checked) {
    for fault in &checked.proof.faults {
        println!("fault: {fault}");
    }
    let header = &checked.manifest.header;
    println!("{}: device {}, epoch {}, made {}", file.display(), header.device_id, header.epoch, header.created_at);
    let counters = checked.proof.counters;
    println!(
        "committed {} = delivered {} + pending {} + set aside {}",
        counters.committed, counters.delivered, counters.pending, counters.quarantined
    );
    println!(
        "checked {} members, {} inspections, {} pictures: {}",
        checked.manifest.members.len(),
        checked.proof.inspections_checked,
        checked.manifest.count(MemberKind::Picture).0,
        if checked.proof.holds() { "nothing is missing" } else { "NOT WHOLE" }
    );
    if checked.opens_secrets == Some(true) {
        println!("the passphrase opens the secrets");
    }
}

fn run_restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let options = RestoreOptions {
        root: args.to.clone(),
        state_dir: args.state.clone(),
        state_only: args.state_only,
        force: args.force,
        passphrase: passphrase(args.passphrase_file.as_deref())?,
    };
    let bar = progress_bar();
    let report = restore(&args.file, &options, &Clock::system(), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report.map_err(explain)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    Ok(())
}

fn print_report(report: &RestoreReport) {
    println!("device {} of {} is in {}", report.device_id, report.backup_created_at, report.state_dir.display());
    println!("epoch {} follows {}", report.epoch, report.epoch_before);
    println!(
        "{} pictures, {} other files written, {} were there already",
        report.picture_count, report.files_written, report.files_kept
    );
    for path in &report.moved_aside {
        println!("moved aside: {}", path.display());
    }
    for path in &report.secrets_to_put_back {
        println!("put back by hand: {} (a secret)", path.display());
    }
    for path in report.pictures_missing.iter().take(20) {
        println!("was missing before the backup: {path}");
    }
    if let Some(config) = &report.config {
        println!("look it over by `loupe check --config {}`", config.display());
    }
    println!("prove it by `loupe outbox verify --state {}`", report.state_dir.display());
}

/// The first line of `file`, or the variable; `None` where neither is given.
fn passphrase(file: Option<&Path>) -> anyhow::Result<Option<Secret>> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("the passphrase file {} cannot be read", path.display()))
            .map_err(Failure::usage)?,
        None => std::env::var(PASSPHRASE_VARIABLE).unwrap_or_default(),
    };
    let line = text.lines().next().unwrap_or_default();
    Ok((!line.is_empty()).then(|| Secret::new(line)))
}

/// With the exit code that fits.
fn explain(error: BackupError) -> anyhow::Error {
    if error.needs_operator() {
        return Failure::config(error.into()).into();
    }
    match error {
        BackupError::WeakPassphrase { .. } => Failure::usage(error.into()).into(),
        error => error.into(),
    }
}

/// On stderr, and only where that is a terminal.
fn progress_bar() -> ProgressBar {
    let template = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
