//! `sizes.csv`: the true sides of the catalogue's parts, millimetres. Pure.
//!
//! A generation without the file knows no sizes, and no size then counts in a match.

use std::collections::BTreeMap;

use super::MatchError;
use super::table::Table;

const TABLE: Table<4> = Table { name: "sizes.csv", header: ["part_id", "x_mm", "y_mm", "z_mm"] };

/// Part → its three sides, mm; y is the side that is upright as the part is modelled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sizes {
    mm_of: BTreeMap<String, [f32; 3]>,
}

impl Sizes {
    /// # Errors
    /// A sentence naming the part whose side is not a positive number.
    pub fn new(mm_of: BTreeMap<String, [f32; 3]>) -> Result<Self, String> {
        let is_bad = |sides: &[f32; 3]| sides.iter().any(|side| !side.is_finite() || *side <= 0.0);
        match mm_of.iter().find(|(_, sides)| is_bad(sides)) {
            Some((part, sides)) => Err(format!("part `{part}` has the sides {sides:?} mm; each must be above 0")),
            None => Ok(Self { mm_of }),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mm_of.is_empty()
    }

    /// Number of parts whose size is known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mm_of.len()
    }

    #[must_use]
    pub fn of(&self, part_id: &str) -> Option<[f32; 3]> {
        self.mm_of.get(part_id).copied()
    }

    /// # Errors
    /// When writing to memory fails, which it does not.
    pub fn to_csv(&self) -> Result<Vec<u8>, MatchError> {
        let row = |(part, [x, y, z]): (&String, &[f32; 3])| [part.clone(), x.to_string(), y.to_string(), z.to_string()];
        TABLE.write(self.mm_of.iter().map(row))
    }

    /// # Errors
    /// A sentence saying what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mm_of = TABLE.by_part(bytes, |record| {
            let side = |column: usize| {
                record[column].parse::<f32>().map_err(|_| format!("`{}` is not a number", &record[column]))
            };
            Ok([side(1)?, side(2)?, side(3)?])
        })?;
        Self::new(mm_of).map_err(|fault| format!("sizes.csv: {fault}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Sizes;

    #[test]
    fn sizes_come_back_from_their_file() {
        let sizes = Sizes::new(BTreeMap::from([("3005".to_owned(), [8.0, 11.2, 8.0])])).unwrap();
        let again = Sizes::parse(&sizes.to_csv().unwrap()).unwrap();
        assert_eq!(again, sizes);
        assert_eq!((again.of("3005"), again.of("3004")), (Some([8.0, 11.2, 8.0]), None));
    }

    #[test]
    fn bad_sides_headers_and_repeats_are_named() {
        for (text, word) in [
            ("part,x\n", "header"),
            ("part_id,x_mm,y_mm,z_mm\na,1,2,b\n", "`b`"),
            ("part_id,x_mm,y_mm,z_mm\na,1,2,0\n", "above 0"),
            ("part_id,x_mm,y_mm,z_mm\na,1,2,NaN\n", "above 0"),
            ("part_id,x_mm,y_mm,z_mm\na,1,2,3\na,1,2,3\n", "twice"),
            ("part_id,x_mm,y_mm,z_mm\na,1\n", "sizes.csv"),
        ] {
            let fault = Sizes::parse(text.as_bytes()).unwrap_err();
            assert!(fault.contains(word), "{text:?}: {fault}");
        }
    }
}
