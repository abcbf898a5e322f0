//! `groups.csv`: which parts are known to be confused with one another. Pure.
//!
//! A generation without the file has no groups. Between two parts of one group the recipe's `group_margin` applies.

use std::collections::BTreeMap;

use super::MatchError;
use super::table::Table;

const TABLE: Table<2> = Table { name: "groups.csv", header: ["part_id", "group"] };

/// Part → name of its confusion group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    group_of: BTreeMap<String, String>,
}

impl Groups {
    #[must_use]
    pub fn new(group_of: BTreeMap<String, String>) -> Self {
        Self { group_of }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.group_of.is_empty()
    }

    /// Number of parts that are in a group.
    #[must_use]
    pub fn len(&self) -> usize {
        self.group_of.len()
    }

    /// Name of the part's group.
    #[must_use]
    pub fn of(&self, part_id: &str) -> Option<&str> {
        self.group_of.get(part_id).map(String::as_str)
    }

    /// Whether the part's group is of two: it and one other.
    #[must_use]
    pub fn is_of_pair(&self, part_id: &str) -> bool {
        self.of(part_id).is_some_and(|name| self.group_of.values().filter(|group| *group == name).count() == 2)
    }

    /// Whether two parts are of one group.
    #[must_use]
    pub fn share(&self, one: &str, other: &str) -> bool {
        self.group_of.get(one).is_some_and(|group| self.group_of.get(other) == Some(group))
    }

    /// # Errors
    /// When writing to memory fails, which it does not.
    pub fn to_csv(&self) -> Result<Vec<u8>, MatchError> {
        TABLE.write(self.group_of.iter().map(|(part, group)| [part.clone(), group.clone()]))
    }

    /// # Errors
    /// A sentence saying what is wrong and in which line.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        Ok(Self { group_of: TABLE.by_part(bytes, |record| Ok(record[1].to_owned()))? })
    }
}

#[cfg(test)]
mod tests {
    use super::Groups;

    #[test]
    fn only_parts_of_one_named_group_share_it() {
        let pairs = [("a", "left"), ("b", "left"), ("c", "right")].map(|(part, group)| (part.into(), group.into()));
        let groups = Groups::new(pairs.into());
        assert!(groups.share("a", "b") && !groups.share("a", "c"));
        assert!(groups.is_of_pair("a") && !groups.is_of_pair("c") && !groups.is_of_pair("x"));
        assert!(!groups.share("x", "y"), "parts without a group are not in one");
        assert_eq!(Groups::parse(&groups.to_csv().unwrap()).unwrap(), groups);
    }

    #[test]
    fn a_part_in_two_groups_and_a_wrong_header_are_refused() {
        assert!(Groups::parse(b"part_id,group\na,1\na,2\n").unwrap_err().contains("twice"));
        assert!(Groups::parse(b"part,group\na,1\n").unwrap_err().contains("header"));
    }
}
