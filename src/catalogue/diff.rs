//! What an import would add, change and leave.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::types::Catalogue;

/// Changes of one kind of entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Change {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub unchanged: usize,
}

/// Changes by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub categories: Change,
    pub colors: Change,
    pub parts: Change,
    pub relations: Change,
    pub policies: Change,
    pub kits: Change,
}

impl Summary {
    #[must_use]
    pub fn kinds(&self) -> [(&'static str, &Change); 6] {
        [
            ("categories", &self.categories),
            ("colours", &self.colors),
            ("parts", &self.parts),
            ("similar pairs", &self.relations),
            ("access policies", &self.policies),
            ("kits", &self.kits),
        ]
    }
}

/// What `batch` would change of `known`.
#[must_use]
pub fn diff(known: &Catalogue, batch: &Catalogue) -> Summary {
    // A category that only a part names is not described by the file: an existing one stays as it is.
    Summary {
        categories: change(&known.categories, &batch.categories, |c| c.code.clone()),
        colors: change(&known.colors, &batch.colors, |c| c.color_id.to_string()),
        parts: change(&known.parts, &batch.parts, |p| p.part_number.clone()),
        relations: change(&known.relations, &batch.relations, |r| {
            format!("{} ~ {}", r.part_number, r.related_part_number)
        }),
        policies: change(&known.policies, &batch.policies, |p| format!("{} {}", p.subject_kind, p.subject)),
        kits: change(&known.kits, &batch.kits, |k| k.kit_code.clone()),
    }
}

fn change<T: PartialEq>(known: &[T], batch: &[T], key: impl Fn(&T) -> String) -> Change {
    let before: BTreeMap<String, &T> = known.iter().map(|entry| (key(entry), entry)).collect();
    let mut change = Change::default();
    let mut seen = BTreeSet::new();
    for entry in batch {
        let name = key(entry);
        match before.get(&name) {
            None if seen.insert(name.clone()) => change.added.push(name),
            None => {}
            Some(old) if *old == entry => change.unchanged += 1,
            Some(_) => change.changed.push(name),
        }
    }
    change
}
