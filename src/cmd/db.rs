//! `loupe db`: the central database's schema and sites. Its recurring jobs are in `db_jobs`.

use anyhow::Context as _;
use clap::{Args as ClapArgs, Subcommand};
use uuid::Uuid;

use super::{Failure, db_jobs};
use crate::uplink::{Central, MigrationReport, ProvisionedSite, SchemaStatus, Secret, UplinkError, block_on};

/// The environment variable read where no DSN is given, so that it need not stand in a process list.
const DSN_VARIABLE: &str = "LOUPE_DSN";

/// Prepare the central PostgreSQL database that devices deliver to.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the schema to this program's version and make the partitions of this month and the next three.
    Migrate(DsnArgs),
    /// Say which migrations are applied and whether partitions stand ready.
    Status(DsnArgs),
    /// Make a site and a login for its devices, or give it a new password; the password is printed once.
    ProvisionSite(ProvisionArgs),
    /// Take from a site's devices what they may do, at once; their rows stay. `provision-site --rotate` admits them again.
    RevokeSite(RevokeArgs),
    /// Make partitions ahead, move rows into theirs, drop what has expired and no legal hold covers; run it daily.
    Retention(db_jobs::RetentionArgs),
    /// Bring hourly rollups up to date and refresh the materialised views; run it every 5 minutes.
    Rollup(db_jobs::RollupArgs),
    /// Keep rows from being deleted by retention, for as long as the law asks.
    Hold(db_jobs::HoldArgs),
}

/// Which database, and how to answer.
#[derive(Debug, ClapArgs)]
pub struct DsnArgs {
    /// Address and login, as `postgresql://user:password@host:port/database?sslmode=require`; default: the variable LOUPE_DSN.
    #[arg(long, value_name = "URL", value_parser = parse_secret)]
    dsn: Option<Secret>,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
struct ProvisionArgs {
    #[command(flatten)]
    database: DsnArgs,
    /// Short name of the site: 2 to 40 of a-z, 0-9 and -.
    #[arg(long)]
    code: String,
    /// Name of the site for people.
    #[arg(long, required_unless_present = "rotate")]
    name: Option<String>,
    /// Id of the site; default: a new one.
    #[arg(long, value_name = "UUID")]
    site_id: Option<Uuid>,
    /// Give a site that is there a new password; the old one and its sessions end.
    #[arg(long, conflicts_with_all = ["name", "site_id"])]
    rotate: bool,
}

#[derive(Debug, ClapArgs)]
struct RevokeArgs {
    #[command(flatten)]
    database: DsnArgs,
    /// Short name of the site.
    #[arg(value_name = "CODE")]
    code: String,
}

#[expect(clippy::unnecessary_wraps, reason = "the signature of a clap parser")]
pub(super) fn parse_secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

impl DsnArgs {
    /// The DSN given, or that of the environment.
    ///
    /// # Errors
    /// When there is none.
    pub fn secret(&self) -> anyhow::Result<Secret> {
        if let Some(dsn) = &self.dsn {
            return Ok(dsn.clone());
        }
        match std::env::var(DSN_VARIABLE) {
            Ok(dsn) if !dsn.is_empty() => Ok(Secret::new(dsn)),
            _ => Err(Failure::usage(anyhow::anyhow!("give --dsn URL, or set {DSN_VARIABLE}")).into()),
        }
    }

    #[must_use]
    pub fn wants_json(&self) -> bool {
        self.json
    }
}

/// # Errors
/// When the database refuses.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Migrate(database) => migrate(&database),
        Command::Status(database) => status(&database),
        Command::ProvisionSite(args) => provision_site(&args),
        Command::RevokeSite(args) => revoke_site(&args),
        Command::Retention(args) => db_jobs::retention(&args),
        Command::Rollup(args) => db_jobs::rollup(&args),
        Command::Hold(args) => db_jobs::hold(args),
    }
}

/// The error for people: 78 where a setting, a login or a version must change first.
pub fn explained(error: UplinkError) -> anyhow::Error {
    let is_configuration = error.is_configuration();
    let error = anyhow::Error::from(error);
    if is_configuration { Failure::config(error).into() } else { error }
}

fn migrate(database: &DsnArgs) -> anyhow::Result<()> {
    let dsn = database.secret()?;
    let report = block_on(async { Central::connect(&dsn).await?.migrate().await }).map_err(explained)?;
    if database.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    Ok(())
}

fn print_report(report: &MigrationReport) {
    for migration in &report.applied {
        println!("applied {migration}");
    }
    if !report.partitions.is_empty() {
        println!("made {} partitions", report.partitions.len());
    }
    println!("{} is at version {}", report.server, report.version);
}

fn status(database: &DsnArgs) -> anyhow::Result<()> {
    let dsn = database.secret()?;
    let status = block_on(async { Central::connect(&dsn).await?.status().await }).map_err(explained)?;
    if database.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print_status(&status);
    }
    Ok(())
}

fn print_status(status: &SchemaStatus) {
    println!("{} (PostgreSQL {})", status.server, status.server_version);
    for migration in &status.migrations {
        let applied = migration.applied_on.as_deref().unwrap_or("waiting: run `loupe db migrate`");
        println!("  V{} {:<36} {applied}", migration.version, migration.name);
    }
    if status.is_newer() {
        println!("  the schema is at version {}, newer than this program; install a newer loupe here", status.version);
    }
    if let Some(month) = &status.last_partition {
        println!("  partitions reach to {month}");
    }
    if status.rows_in_default > 0 {
        println!("  {} rows lie outside every month; check the devices' clocks", status.rows_in_default);
    }
}

fn provision_site(args: &ProvisionArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let site = block_on(async {
        let mut central = Central::connect(&dsn).await?;
        match &args.name {
            Some(name) => central.provision_site(&args.code, name, args.site_id).await,
            None => central.rotate_site(&args.code).await,
        }
    })
    .map_err(|error| if args.rotate { explained(error) } else { taken(error) })
    .with_context(|| format!("site `{}` was not provisioned", args.code))?;
    print_site(&site, args.database.json)
}

fn print_site(site: &ProvisionedSite, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let document = serde_json::json!({
            "site_id": site.site_id,
            "role_name": site.role_name,
            "password": site.password.expose(),
            "dsn": site.dsn.expose(),
        });
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        println!("site     {}", site.site_id);
        println!("login    {}", site.role_name);
        println!("password {}", site.password.expose());
        println!("dsn      {}", site.dsn.expose());
        println!("Keep the password now: it is not stored anywhere and not shown again.");
    }
    Ok(())
}

fn revoke_site(args: &RevokeArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let site = block_on(async { Central::connect(&dsn).await?.revoke_site(&args.code).await })
        .map_err(explained)
        .with_context(|| format!("site `{}` was not revoked", args.code))?;
    if args.database.json {
        println!("{}", serde_json::to_string_pretty(&site)?);
    } else if site.role_names.is_empty() {
        println!("site {} was revoked before", site.site_id);
    } else {
        println!("site     {}", site.site_id);
        println!("revoked  {}", site.role_names.join(", "));
        println!("ended    {} sessions", site.sessions_ended);
        println!("Its rows stay; what its devices hold waits there.");
    }
    Ok(())
}

fn taken(error: UplinkError) -> anyhow::Error {
    let text = error.to_string();
    let error = explained(error);
    if text.contains("already exists") || text.contains("duplicate key") {
        return error.context("the code or the id is taken; choose another");
    }
    error
}
