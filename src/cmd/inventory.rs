//! `loupe inventory`: the stock that follows from counted kits and corrections.

use clap::Subcommand;
use serde_json::json;

use super::ledger_desk::{Place, order};
use crate::types::KitOrder;

/// Shows and corrects the stock; finished kit sessions add to it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is in stock, and what is low.
    Status {
        /// Only what is below its threshold.
        #[arg(long)]
        low: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Book a correction: what came or went without being counted.
    Adjust {
        /// Part number.
        part: String,
        /// How many came; below 0, how many went.
        #[arg(allow_negative_numbers = true)]
        quantity: i64,
        /// Colour, where it matters.
        #[arg(long, value_name = "COLOR")]
        color: Option<i64>,
        /// Who books it.
        #[arg(long)]
        by: String,
        /// Why, in a sentence.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        place: Place,
    },
    /// Warn when a part's stock in all colours falls below a quantity; 0 ends that.
    Threshold {
        /// Part number.
        part: String,
        /// The quantity.
        min_quantity: i64,
        /// Who sets it; default: the login name.
        #[arg(long, env = "USER", default_value = "operator")]
        by: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Run the command.
///
/// # Errors
/// When the ledger cannot be used or the order is refused.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Status { low, place } => status(low, &place),
        Command::Adjust { part, quantity, color, by, reason, place } => {
            let adjust = KitOrder::Adjust { part_number: part, color_id: color, delta: quantity, by, reason };
            let done = order(&place, adjust)?;
            if place.json {
                println!("{}", serde_json::to_string_pretty(&done)?);
            } else {
                println!("{} in stock", done["quantity"]);
            }
            Ok(())
        }
        Command::Threshold { part, min_quantity, by, place } => {
            let done = order(&place, KitOrder::Threshold { part_number: part.clone(), min_quantity, by })?;
            if place.json {
                println!("{}", serde_json::to_string_pretty(&done)?);
            } else {
                println!("{part} is low below {min_quantity}");
            }
            Ok(())
        }
    }
}

fn status(only_low: bool, place: &Place) -> anyhow::Result<()> {
    let reader = place.reader()?;
    let (stock, low) = (reader.stock()?, reader.low_stock()?);
    if place.json {
        let stock = if only_low { None } else { Some(stock) };
        println!("{}", serde_json::to_string_pretty(&json!({ "stock": stock, "low": low }))?);
        return Ok(());
    }
    if !only_low {
        for line in &stock {
            let color = line.color_id.map_or_else(|| "any".to_owned(), |color| color.to_string());
            println!("{:<16} colour {color:<6} {:>8}  {}", line.part_number, line.quantity, line.last_changed_at);
        }
    }
    for low in &low {
        println!("LOW {:<16} {:>8}, at least {} wanted", low.part_number, low.quantity, low.min_quantity);
    }
    if stock.is_empty() && low.is_empty() {
        println!("nothing is in stock; finished kit sessions and `loupe inventory adjust` add to it");
    }
    Ok(())
}
