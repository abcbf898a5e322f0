//! What templates did: how often each was the best answer, and how often that was right. Moves them between the tiers.
//!
//! Both rates are exponentially weighted: the hit rate over all searches (half of what a search counts is gone
//! [`HITS_HALF_LIFE`] searches later), the success rate over the template's own hits. They are gathered from the ledger
//! when an index is built, off the hot path, and stored with the generation as `evidence.csv`, so that the next build
//! goes on from them. Pure.

use std::collections::BTreeMap;

use super::MatchError;
use super::ids::Template;
use super::table::Table;

/// Searches after which a hit counts half: a busy counter's week.
pub const HITS_HALF_LIFE: f64 = 10_000.0;
/// Weight of the newest hit in a template's success rate: about the last twenty count.
const SUCCESS_WEIGHT: f64 = 0.1;
/// Success rate of a template before its first hit: nothing is known.
const SUCCESS_UNKNOWN: f64 = 0.5;
const TABLE: Table<5> =
    Table { name: "evidence.csv", header: ["part_id", "color_id", "view", "hit_rate", "success_rate"] };

/// One template's rates, each 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Share of the searches that it was the best answer of.
    pub hit_rate: f64,
    /// Share of those that were accepted and not corrected.
    pub success_rate: f64,
}

/// Hit rate as it stood at one search.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tally {
    hit_rate: f64,
    at_search: u64,
    success_rate: f64,
}

/// Rates of the templates that were ever the best answer; a template is known by part, colour and view.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TierEvidence {
    searches: u64,
    tallies: BTreeMap<(String, String, String), Tally>,
}

impl TierEvidence {
    /// Count one search whose best template was `best`; `is_success`: accepted and not corrected, or confirmed.
    pub fn count(&mut self, best: &Template, is_success: bool) {
        self.searches += 1;
        let now = self.searches;
        let fresh = Tally { hit_rate: 0.0, at_search: now, success_rate: SUCCESS_UNKNOWN };
        let tally = self.tallies.entry(key(best)).or_insert(fresh);
        tally.hit_rate = faded(tally, now) + (1.0 - fading(1));
        tally.at_search = now;
        tally.success_rate += SUCCESS_WEIGHT * (f64::from(u8::from(is_success)) - tally.success_rate);
    }

    /// Searches counted here, those of stored evidence not among them.
    #[must_use]
    pub fn searches(&self) -> u64 {
        self.searches
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tallies.is_empty()
    }

    /// Rates of a template now; `None` when it never was the best answer.
    #[must_use]
    pub fn rates(&self, template: &Template) -> Option<Rates> {
        let tally = self.tallies.get(&key(template))?;
        Some(Rates { hit_rate: faded(tally, self.searches), success_rate: tally.success_rate })
    }

    /// What a template is worth in the hot tier, 0 to 1: how often it answers rightly.
    #[must_use]
    pub fn worth(&self, template: &Template) -> f64 {
        self.rates(template).map_or(0.0, |rates| rates.hit_rate * rates.success_rate)
    }

    /// # Errors
    /// When writing to memory fails, which it does not.
    pub fn to_csv(&self) -> Result<Vec<u8>, MatchError> {
        TABLE.write(self.tallies.iter().map(|((part, color, view), tally)| {
            let hit_rate = faded(tally, self.searches).to_string();
            [part.clone(), color.clone(), view.clone(), hit_rate, tally.success_rate.to_string()]
        }))
    }

    /// # Errors
    /// A sentence saying what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let tallies = TABLE.rows(bytes, |record| {
            let rate = |column: usize| {
                let rate = record[column].parse::<f64>().ok().filter(|rate| (0.0..=1.0).contains(rate));
                rate.ok_or_else(|| format!("`{}` is no rate of 0 to 1", &record[column]))
            };
            let tally = Tally { hit_rate: rate(3)?, at_search: 0, success_rate: rate(4)? };
            Ok(((record[0].to_owned(), record[1].to_owned(), record[2].to_owned()), tally))
        })?;
        Ok(Self { searches: 0, tallies: tallies.into_iter().collect() })
    }
}

fn key(template: &Template) -> (String, String, String) {
    (template.part_id.clone(), template.color_id.clone().unwrap_or_default(), template.view.clone())
}

/// What is left of a weight after so many searches.
fn fading(searches: u64) -> f64 {
    (-(searches as f64) / HITS_HALF_LIFE).exp2()
}

fn faded(tally: &Tally, now: u64) -> f64 {
    tally.hit_rate * fading(now - tally.at_search)
}

#[cfg(test)]
mod tests {
    use super::{HITS_HALF_LIFE, TierEvidence};
    use crate::matching::Template;

    fn template(part: &str) -> Template {
        Template { part_id: part.to_owned(), color_id: None, view: "0".to_owned() }
    }

    #[test]
    fn rates_settle_at_the_shares_and_old_hits_fade() {
        let (often, seldom) = (template("often"), template("seldom"));
        let mut evidence = TierEvidence::default();
        for round in 0..100_000 {
            evidence.count(if round % 4 == 0 { &seldom } else { &often }, round % 8 != 0);
        }
        let (often_rates, seldom_rates) = (evidence.rates(&often).unwrap(), evidence.rates(&seldom).unwrap());
        assert!((often_rates.hit_rate - 0.75).abs() < 0.01, "{often_rates:?}");
        assert!((seldom_rates.hit_rate - 0.25).abs() < 0.01, "{seldom_rates:?}");
        assert!(often_rates.success_rate > 0.99 && (seldom_rates.success_rate - 0.5).abs() < 0.1, "{seldom_rates:?}");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number above 0")]
        let half_life = HITS_HALF_LIFE as u64;
        for _ in 0..half_life {
            evidence.count(&template("other"), true);
        }
        let faded = evidence.rates(&often).unwrap().hit_rate;
        assert!((faded - often_rates.hit_rate / 2.0).abs() < 1e-6, "{faded}");
        assert_eq!(evidence.worth(&template("never")), 0.0);
    }

    #[test]
    fn csv_carries_the_rates_on_and_refuses_nonsense() {
        let mut evidence = TierEvidence::default();
        (0..30).for_each(|n| evidence.count(&template(["a", "b"][n % 2]), n % 3 == 0));
        let again = TierEvidence::parse(&evidence.to_csv().unwrap()).unwrap();
        assert_eq!(again.rates(&template("a")), evidence.rates(&template("a")));
        assert!(TierEvidence::parse(b"part_id,color_id,view,hit_rate,success_rate\na,,0,2,0.5\n").is_err());
        assert!(TierEvidence::parse(b"part_id,color_id,view,hit_rate,success_rate\na,,0,NaN,0.5\n").is_err());
        assert!(TierEvidence::parse(b"a,b\n").unwrap_err().contains("header"));
    }
}
