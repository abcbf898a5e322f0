//! The written-out examples say what the program reads: no key too many, none wrongly typed.

mod support;

use std::fs;
use std::path::Path;

use loupe::config::{Config, ConfigError, Recipe};
use support::root;

/// The text with every `# key = value` and `# [table]` brought to life; sentences stay comments.
fn uncommented(text: &str) -> String {
    let is_key = |rest: &str| {
        let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_' || *c == '.').collect();
        !name.is_empty() && rest[name.len()..].starts_with(" = ")
    };
    let wake = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if is_key(rest) || rest.starts_with('[') => rest.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(wake).collect::<Vec<_>>().join("\n")
}

/// No fault but those of places that this machine does not have, or of keys that exclude each other.
fn check(result: Result<(), ConfigError>) {
    let Err(error) = result else { return };
    for fault in error.faults {
        let is_of_place = ["does not exist", "cannot be read", "stands beside", "exclude each other", "invalid length"]
            .iter()
            .any(|words| fault.message.contains(words));
        let is_of_other_kind = fault.message.contains("for folders only") || fault.message.contains("for videos only");
        assert!(is_of_place || is_of_other_kind, "{fault}");
    }
}

fn example(path: &str) -> (std::path::PathBuf, String, usize) {
    let path = root().join(path);
    let text = fs::read_to_string(&path).unwrap();
    let awake = uncommented(&text);
    let keys = awake.lines().zip(text.lines()).filter(|(a, b)| a != b).count();
    (path, awake, keys)
}

#[test]
fn the_example_config_is_valid_and_every_commented_key_exists() {
    Config::load(&root().join("config/loupe.example.toml")).map(drop).unwrap();
    let (path, awake, keys) = example("config/loupe.example.toml");
    assert!(keys >= 12, "{keys} commented keys");
    let folder = tempfile::TempDir::new().unwrap();
    let copy = folder.path().join("loupe.toml");
    let recipes = path.parent().unwrap().join("recipes");
    fs::write(&copy, awake.replace("recipes/plate.toml", recipes.join("plate.toml").to_str().unwrap())).unwrap();
    check(Config::load(&copy).map(drop));
}

#[test]
fn the_example_recipes_are_valid_and_every_commented_key_exists() {
    for recipe in ["belt.toml", "plate.toml", "example.toml"] {
        Recipe::load(&root().join("config/recipes").join(recipe)).map(drop).unwrap();
    }
    let (path, awake, keys) = example("config/recipes/example.toml");
    assert!(keys >= 35, "{keys} commented keys");
    check(Recipe::parse(&path, awake).map(drop));
}

#[test]
fn a_key_that_does_not_exist_is_caught_by_these_checks() {
    let error = Recipe::parse(Path::new("x.toml"), "name = \"x\"\n[match]\nspeed = 1\n".to_owned()).unwrap_err();
    assert!(error.to_string().contains("match.speed"), "{error}");
}

#[test]
fn a_limit_that_only_a_fit_can_meet_needs_the_fit() {
    let faults = |lines: &str| {
        let text = format!("name = \"x\"\n[match]\nindex = \"i\"\nmodel = \"m\"\n{lines}\n");
        Recipe::parse(Path::new("x.toml"), text).map_or_else(|error| error.to_string(), |_| String::new())
    };
    let without = faults("unknown_probability = 0.9");
    assert!(without.contains("match.unknown_probability") && without.contains("use_fit"), "{without}");
    let beyond = faults("use_fit = true\nunknown_probability = 1.5");
    assert!(beyond.contains("match.unknown_probability"), "{beyond}");
    assert!(!faults("use_fit = true\nunknown_probability = 0.9").contains("unknown_probability"));
}
