//! `loupe audit`: whether what is kept centrally is as it was written.

use std::str::FromStr as _;

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, Subcommand};

use super::Failure;
use super::db::{DsnArgs, explained};
use crate::types::Digest;
use crate::uplink::{AuditReport, Central, ChainEnd, block_on};

/// Prove that the central audit was not touched.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find audit rows that were edited, deleted, inserted or moved, and name them; exit code 1 where there are any.
    Verify(VerifyArgs),
}

#[derive(Debug, ClapArgs)]
struct VerifyArgs {
    #[command(flatten)]
    database: DsnArgs,
    /// An end of the chain as this command printed it before: proves that nothing up to it was written anew.
    #[arg(long, value_name = "SEQ:SHA256")]
    expect: Option<String>,
    /// Also check what the sites' rows say of each other: digests of provenances and batches, items of inspections,
    /// stock bookings.
    #[arg(long)]
    facts: bool,
    /// How many days back `--facts` looks at inspections and batches; default: 31.
    #[arg(long, value_name = "DAYS", default_value_t = 31, value_parser = clap::value_parser!(i32).range(1..=3_650))]
    days: i32,
}

/// # Errors
/// When the database refuses, or something was touched.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::Verify(args) = args.command;
    let expected = args.expect.as_deref().map(parse_end).transpose().map_err(Failure::usage)?;
    let dsn = args.database.secret()?;
    let days = args.facts.then_some(args.days);
    let report = block_on(async { Central::connect(&dsn).await?.verify_audit(expected.as_ref(), days).await })
        .map_err(explained)?;
    if args.database.wants_json() {
        let mut document = serde_json::to_value(&report)?;
        document["holds"] = report.holds().into();
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print_report(&report);
    }
    if !report.holds() {
        let faults = report.breaks.len() + report.facts.as_ref().map_or(0, |f| f.faults.len() + f.updated_tables.len());
        bail!("{} is not as it was written: {faults} faults", report.server);
    }
    Ok(())
}

fn parse_end(text: &str) -> anyhow::Result<ChainEnd> {
    let (seq, sha256) = text.split_once(':').context("--expect takes SEQ:SHA256, as `loupe audit verify` prints it")?;
    let chain_seq = seq.parse().with_context(|| format!("`{seq}` in --expect is not a position"))?;
    let sha256 = Digest::from_str(sha256).map_err(|_| anyhow::anyhow!("`{sha256}` in --expect is not a SHA-256"))?;
    Ok(ChainEnd { chain_seq, sha256 })
}

fn print_report(report: &AuditReport) {
    for chain in &report.chains {
        println!("chain {}: {} rows, from position {}", chain.chain, chain.rows, chain.first_seq);
        println!("  ends at {}:{}", chain.end.chain_seq, chain.end.sha256);
    }
    for found in &report.breaks {
        let id = found.id.as_deref().unwrap_or("-");
        println!("  {:?} at {} of {}: {} ({id})", found.kind, found.chain_seq, found.chain, found.detail);
    }
    if let Some(facts) = &report.facts {
        for fault in &facts.faults {
            println!("  {} {} of site {}: {}", fault.table, fault.id, fault.site_id, fault.detail);
        }
        for table in &facts.updated_tables {
            println!("  {table}: rows were updated, which no device may do");
        }
    }
    if report.holds() {
        println!("{}: nothing was touched, as far as can be told here", report.server);
    }
}

#[cfg(test)]
mod tests {
    use super::parse_end;

    #[test]
    fn an_end_is_read_as_it_is_printed() {
        let end = parse_end(&format!("17:{}", "ab".repeat(32))).unwrap();
        assert_eq!((end.chain_seq, end.sha256.to_string()), (17, "ab".repeat(32)));
        for bad in ["17", "x:ab", &format!("17:{}", "ab".repeat(31))] {
            assert!(parse_end(bad).is_err(), "{bad}");
        }
    }
}
