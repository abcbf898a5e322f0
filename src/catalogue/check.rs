//! Rows → catalogue entries; each fault with its row.

use std::collections::{BTreeMap, BTreeSet};

use super::Fault;
use super::rows::Row;
use crate::limits::{KIT_LINES_MAX, KIT_QUANTITY_MAX};
use crate::types::{AccessPolicy, Catalogue, Category, Color, Kit, KitLine, Part, PartRelation};

/// Millimetres of one LDraw unit.
const MM_PER_LDU: f64 = 0.4;
/// Largest side of a part, mm, and weight, g: beyond these a unit is wrong.
const SIZE_MM_MAX: f64 = 100_000.0;

/// Collects entries, and faults where a row is wrong.
#[derive(Debug)]
pub struct Checker {
    batch: Catalogue,
    faults: Vec<Fault>,
    /// Pairs that name a part this catalogue lacks: lists of look-alikes are wider than one site's catalogue.
    skipped: Vec<String>,
    /// Where each key stood first: a second one is a fault.
    seen: BTreeMap<String, String>,
    parts: BTreeSet<String>,
    colors: BTreeSet<i64>,
    /// Category → parent; those known and those of the batch.
    parents: BTreeMap<String, Option<String>>,
    category_rows: Vec<(Row, String)>,
    kit_rows: BTreeMap<String, Row>,
}

impl Checker {
    #[must_use]
    pub fn new(known: &Catalogue) -> Self {
        Self {
            batch: Catalogue::default(),
            faults: Vec::new(),
            skipped: Vec::new(),
            seen: BTreeMap::new(),
            parts: known.parts.iter().map(|part| part.part_number.clone()).collect(),
            colors: known.colors.iter().map(|color| color.color_id).collect(),
            parents: known.categories.iter().map(|c| (c.code.clone(), c.parent_code.clone())).collect(),
            category_rows: Vec::new(),
            kit_rows: BTreeMap::new(),
        }
    }

    fn take<T>(&mut self, row: &Row, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|message| self.fault(row, message)).ok()
    }

    fn fault(&mut self, row: &Row, message: String) {
        self.faults.push(Fault { file: row.file.clone(), place: row.place.clone(), message });
    }

    fn is_first(&mut self, row: &Row, what: &str, key: &str) -> bool {
        let here = format!("{} {}", row.file, row.place);
        match self.seen.insert(format!("{what} {key}"), here.clone()) {
            None => true,
            Some(first) => {
                self.seen.insert(format!("{what} {key}"), first.clone());
                self.fault(row, format!("{what} `{key}` stands twice, first at {first}; keep one"));
                false
            }
        }
    }

    pub fn category(&mut self, row: &Row) {
        let Some(category) = self.take(row, category(row)) else { return };
        if self.is_first(row, "category", &category.code) {
            self.parents.insert(category.code.clone(), category.parent_code.clone());
            self.category_rows.push((row.clone(), category.code.clone()));
            self.batch.categories.push(category);
        }
    }

    pub fn color(&mut self, row: &Row) {
        let Some(color) = self.take(row, color(row)) else { return };
        if self.is_first(row, "colour", &color.color_id.to_string()) {
            self.colors.insert(color.color_id);
            self.batch.colors.push(color);
        }
    }

    pub fn part(&mut self, row: &Row) {
        let Some(part) = self.take(row, part(row)) else { return };
        if !self.is_first(row, "part", &part.part_number) {
            return;
        }
        self.parts.insert(part.part_number.clone());
        // A part may name a category that no file describes: it is made with its code as its name.
        if let Some(code) = part.category_code.clone().filter(|code| !self.parents.contains_key(code)) {
            self.parents.insert(code.clone(), None);
            let category = Category { name_en: code.clone(), code, name_ko: None, parent_code: None };
            self.batch.categories.push(category);
        }
        self.batch.parts.push(part);
    }

    pub fn relation(&mut self, row: &Row) {
        let Some(relation) = self.take(row, relation(row)) else { return };
        for part in [&relation.part_number, &relation.related_part_number] {
            if !self.parts.contains(part) {
                let note = format!("{}: {}: part `{part}` is not in the catalogue", row.file, row.place);
                self.skipped.push(note);
                return;
            }
        }
        let pair = format!("{} and {}", relation.part_number, relation.related_part_number);
        if self.is_first(row, "pair", &pair) {
            self.batch.relations.push(relation);
        }
    }

    pub fn policy(&mut self, row: &Row) {
        let Some(policy) = self.take(row, policy(row)) else { return };
        if policy.subject_kind == "part" && !self.parts.contains(&policy.subject) {
            self.fault(row, format!("part `{}` is not in the catalogue", policy.subject));
            return;
        }
        let key = format!("{} {}", policy.subject_kind, policy.subject);
        if self.is_first(row, "policy of", &key) {
            self.batch.policies.push(policy);
        }
    }

    pub fn kit_line(&mut self, row: &Row) {
        let Some((code, name, line)) = self.take(row, kit_line(row)) else { return };
        if !self.parts.contains(&line.part_number) {
            let message = format!("part `{}` is not in the catalogue; import it first", line.part_number);
            return self.fault(row, message);
        }
        if let Some(color) = line.color_id.filter(|color| !self.colors.contains(color)) {
            return self.fault(row, format!("colour {color} is not in the catalogue; import the colours first"));
        }
        let color = line.color_id.map_or_else(String::new, |color| format!(" in colour {color}"));
        let spare = if line.is_spare { " (spare)" } else { "" };
        if !self.is_first(row, "kit line", &format!("{code}: {}{color}{spare}", line.part_number)) {
            return;
        }
        let found = self.batch.kits.iter().position(|kit| kit.kit_code == code);
        let at = found.unwrap_or_else(|| {
            self.kit_rows.insert(code.clone(), row.clone());
            self.batch.kits.push(Kit { kit_code: code.clone(), name: code.clone(), lines: Vec::new() });
            self.batch.kits.len() - 1
        });
        let kit = &mut self.batch.kits[at];
        if let Some(name) = name {
            kit.name = name;
        }
        let group = kit.lines.iter().find(|other| {
            line.alternate_group.is_some()
                && other.alternate_group == line.alternate_group
                && other.is_spare == line.is_spare
        });
        if let Some(first) = group.filter(|first| first.quantity != line.quantity) {
            let message = format!(
                "alternates stand in for one another, so each says the group's quantity: here {}, before {}",
                line.quantity, first.quantity
            );
            return self.fault(row, message);
        }
        if kit.lines.len() == KIT_LINES_MAX {
            return self.fault(row, format!("kit `{code}` has over {KIT_LINES_MAX} lines; split it"));
        }
        kit.lines.push(line);
    }

    /// The catalogue, and what is wrong with it.
    #[must_use]
    pub fn finish(mut self) -> (Catalogue, Vec<Fault>, Vec<String>) {
        for (row, code) in std::mem::take(&mut self.category_rows) {
            self.check_parents(&row, &code);
        }
        for kit in std::mem::take(&mut self.batch.kits) {
            if kit.lines.iter().all(|line| line.is_spare)
                && let Some(row) = self.kit_rows.get(&kit.kit_code).cloned()
            {
                self.fault(&row, format!("kit `{}` expects nothing but spares", kit.kit_code));
            }
            self.batch.kits.push(kit);
        }
        (self.batch, self.faults, self.skipped)
    }

    fn check_parents(&mut self, row: &Row, code: &str) {
        let mut path = vec![code.to_owned()];
        let mut at = code.to_owned();
        while let Some(parent) = self.parents.get(&at).cloned().flatten() {
            if !self.parents.contains_key(&parent) {
                return self.fault(row, format!("the parent `{parent}` of category `{at}` does not exist"));
            }
            if path.contains(&parent) {
                path.push(parent);
                return self.fault(row, format!("the parents go round in a circle: {}", path.join(" → ")));
            }
            path.push(parent.clone());
            at = parent;
        }
    }
}

impl Row {
    fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    fn text(&self, name: &str) -> Result<String, String> {
        let text = self.get(name).ok_or_else(|| format!("`{name}` is empty"))?;
        if text.chars().any(char::is_control) {
            return Err(format!("`{name}` holds control characters"));
        }
        Ok(text.to_owned())
    }

    fn words(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    fn whole(&self, name: &str) -> Result<i64, String> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("`{name}` is `{text}`, not a whole number"))
    }

    /// In millimetres, from millimetres or LDraw units.
    fn size(&self, axis: &str) -> Result<Option<f64>, String> {
        let (mm, ldu) = (format!("{axis}_mm"), format!("{axis}_ldu"));
        let (name, factor) = if self.get(&mm).is_some() { (mm, 1.0) } else { (ldu, MM_PER_LDU) };
        // To the micrometre: what 0.4 makes of a tenth is not worth a version.
        Ok(self.positive(&name)?.map(|value| (value * factor * 1_000.0).round() / 1_000.0))
    }

    fn positive(&self, name: &str) -> Result<Option<f64>, String> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number: f64 = text.parse().map_err(|_| format!("`{name}` is `{text}`, not a number"))?;
        if number > 0.0 && number <= SIZE_MM_MAX {
            return Ok(Some(number));
        }
        Err(format!("`{name}` is {text}; it must be above 0 and at most {SIZE_MM_MAX}"))
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("0" | "false" | "no" | "f" | "n") => Ok(false),
            Some("1" | "true" | "yes" | "t" | "y") => Ok(true),
            Some(other) => Err(format!("`{name}` is `{other}`; it must be true or false")),
        }
    }

    fn one_of(&self, name: &str, values: &[&str]) -> Result<String, String> {
        let text = self.text(name)?;
        if values.contains(&text.as_str()) {
            return Ok(text);
        }
        Err(format!("`{name}` is `{text}`, none of {}", values.join(", ")))
    }
}

fn category(row: &Row) -> Result<Category, String> {
    Ok(Category {
        code: row.text("code")?,
        name_en: row.text("name_en")?,
        name_ko: row.words("name_ko"),
        parent_code: row.words("parent_code"),
    })
}

fn color(row: &Row) -> Result<Color, String> {
    let rgb = row.text("rgb")?.trim_start_matches('#').to_ascii_uppercase();
    if rgb.len() != 6 || !rgb.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("`rgb` is `{rgb}`, not six hexadecimal digits"));
    }
    Ok(Color {
        color_id: row.whole("color_id")?,
        name: row.text("name_en")?.replace('_', " "),
        name_ko: row.words("name_ko"),
        rgb,
        is_transparent: row.flag("is_transparent")?,
    })
}

fn part(row: &Row) -> Result<Part, String> {
    Ok(Part {
        part_number: row.text("part_number")?,
        name_en: row.text("name_en")?,
        name_ko: row.words("name_ko"),
        category_code: row.words("category_code"),
        length_mm: row.size("length")?,
        width_mm: row.size("width")?,
        height_mm: row.size("height")?,
        weight_g: row.positive("weight_g")?,
        confusion_group: row.words("confusion_group"),
    })
}

fn relation(row: &Row) -> Result<PartRelation, String> {
    let (a, b) = (row.text("part_number")?, row.text("related_part_number")?);
    let text = row.text("similarity")?;
    let similarity: f64 = text.parse().map_err(|_| format!("`similarity` is `{text}`, not a number"))?;
    if !(-1.0..=1.0).contains(&similarity) {
        return Err(format!("`similarity` is {similarity}; it must be -1 to 1"));
    }
    if a == b {
        return Err(format!("part `{a}` is paired with itself"));
    }
    let (part_number, related_part_number) = if a < b { (a, b) } else { (b, a) };
    Ok(PartRelation { part_number, related_part_number, similarity })
}

fn policy(row: &Row) -> Result<AccessPolicy, String> {
    let groups = row.get("allowed_groups").unwrap_or_default().split(';').map(str::trim);
    Ok(AccessPolicy {
        subject_kind: row.one_of("subject_kind", &["part", "kit", "product", "recipe"])?,
        subject: row.text("subject")?,
        security_level: row.one_of("security_level", &["public", "internal", "restricted", "secret"])?,
        allowed_groups: groups.filter(|group| !group.is_empty()).map(str::to_owned).collect(),
    })
}

fn kit_line(row: &Row) -> Result<(String, Option<String>, KitLine), String> {
    let quantity = row.whole("quantity")?;
    let quantity = u32::try_from(quantity).ok().filter(|quantity| (1..=KIT_QUANTITY_MAX).contains(quantity));
    let line = KitLine {
        part_number: row.text("part_number")?,
        color_id: row.get("color_id").map(|_| row.whole("color_id")).transpose()?,
        quantity: quantity.ok_or_else(|| format!("`quantity` must be 1 to {KIT_QUANTITY_MAX}"))?,
        is_spare: row.flag("is_spare")?,
        alternate_group: row.words("alternate_group"),
    };
    Ok((row.text("kit_code")?, row.words("name_en"), line))
}
