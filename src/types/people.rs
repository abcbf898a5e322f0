//! People of a site, as far as the ledger must know who signed what. They are names, not accounts: there are no logins.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Timestamp;

/// What a person is at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Admin,
    Manager,
    Operator,
    Viewer,
}

impl Role {
    const ALL: [Self; 4] = [Self::Admin, Self::Manager, Self::Operator, Self::Viewer];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Manager => "manager",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
        }
    }

    /// The role called `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// A person as the last version says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    pub operator_id: Uuid,
    /// 1 for the first.
    pub version: u32,
    /// What the person signs with; unique at the device without regard to case.
    pub username: String,
    pub full_name: Option<String>,
    pub role: Role,
    /// `false`: retired.
    pub is_active: bool,
    pub changed_at: Timestamp,
    pub changed_by: String,
}

/// A change of the register of people; also the body of `POST /api/v1/people`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum PersonOrder {
    /// Register somebody, or bring back somebody who had retired.
    Add { username: String, full_name: Option<String>, role: Role, by: String },
    /// Give another name to sign with, or another full name; what is `None` stays.
    Rename { username: String, new_username: Option<String>, full_name: Option<String>, by: String },
    /// May sign nothing from now on.
    Retire { username: String, by: String },
}

/// A name without regard to case.
#[must_use]
pub fn username_key(username: &str) -> String {
    username.trim().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::{Role, username_key};

    #[test]
    fn names_are_the_same_in_either_case() {
        assert_eq!(username_key(" JOSÉ "), username_key("josé"));
        assert_ne!(username_key("kim"), username_key("kin"));
        assert_eq!(Role::parse("manager"), Some(Role::Manager));
        assert_eq!(Role::parse("worker"), None);
    }
}
