//! `ids.csv`: what each template of a generation is. Row = position of the vector in L2.

use std::collections::{HashMap, HashSet};

use super::MatchError;
use super::delta::LEARNED_VIEW_PREFIX;

/// What one template shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    /// Catalogue number; not empty.
    pub part_id: String,
    pub color_id: Option<String>,
    /// Name of the viewpoint; may be empty.
    pub view: String,
}

/// All templates of a generation, their parts numbered in order of appearance.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateIds {
    templates: Vec<Template>,
    parts: Vec<u32>,
    part_count: usize,
    hot: Vec<u32>,
    numbers: HashMap<String, u32>,
    /// Views of templates that came from reviews.
    learned: HashSet<String>,
}

const HEADER: [&str; 4] = ["part_id", "color_id", "view", "hot"];

impl TemplateIds {
    /// `hot`: positions of the templates of L1, ascending.
    ///
    /// # Errors
    /// When there are none or more than fit u32, a part has no name, or `hot` is not ascending positions.
    pub fn new(templates: Vec<Template>, hot: Vec<u32>) -> Result<Self, MatchError> {
        if templates.is_empty() {
            return Err(MatchError::NoTemplates);
        }
        let bad = |position: usize, fault: &str| MatchError::BadTemplate { position, fault: fault.to_owned() };
        let count =
            u32::try_from(templates.len()).map_err(|_| bad(templates.len(), "an index holds 2^32 templates"))?;
        if let Some(at) = hot.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(bad(at, "the hot templates are not in ascending order"));
        }
        if hot.last().is_some_and(|&last| last >= count) {
            return Err(bad(templates.len(), "a hot template lies beyond the last one"));
        }
        let mut numbers: HashMap<String, u32> = HashMap::new();
        let mut parts = Vec::with_capacity(templates.len());
        for (position, template) in templates.iter().enumerate() {
            if template.part_id.is_empty() {
                return Err(bad(position, "the part has no number"));
            }
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            let number = match numbers.get(&template.part_id) {
                Some(&number) => number,
                None => *numbers.entry(template.part_id.clone()).or_insert(next),
            };
            parts.push(number);
        }
        let part_count = numbers.len();
        let views = templates.iter().map(|template| &template.view);
        let learned = views.filter(|view| view.starts_with(LEARNED_VIEW_PREFIX)).cloned().collect();
        Ok(Self { templates, parts, part_count, hot, numbers, learned })
    }

    /// The same templates with these in L1.
    ///
    /// # Errors
    /// As [`TemplateIds::new`].
    pub fn with_hot(self, hot: Vec<u32>) -> Result<Self, MatchError> {
        Self::new(self.templates, hot)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.templates.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    #[must_use]
    pub fn part_count(&self) -> usize {
        self.part_count
    }

    /// The template at `position`, and its part's number.
    #[must_use]
    pub fn get(&self, position: u32) -> Option<(&Template, u32)> {
        let index = position as usize;
        Some((self.templates.get(index)?, *self.parts.get(index)?))
    }

    /// Number of a part; `None` when it has no template here.
    #[must_use]
    pub fn number_of(&self, part_id: &str) -> Option<u32> {
        self.numbers.get(part_id).copied()
    }

    /// Whether a template that came from a review is here, by its view's name.
    #[must_use]
    pub fn has_learned(&self, view: &str) -> bool {
        self.learned.contains(view)
    }

    /// Part number of each template.
    #[must_use]
    pub fn parts(&self) -> &[u32] {
        &self.parts
    }

    /// Positions of the templates in L1, ascending; row `i` of `l1.faiss` is `hot()[i]`.
    #[must_use]
    pub fn hot(&self) -> &[u32] {
        &self.hot
    }

    /// Whether L1 shows every part, so that its margin is one to the best *other part* at all.
    #[must_use]
    pub fn hot_covers_all_parts(&self) -> bool {
        let mut seen = vec![false; self.part_count];
        for &position in &self.hot {
            seen[self.parts[position as usize] as usize] = true;
        }
        seen.into_iter().all(|part| part)
    }

    /// # Errors
    /// When writing to memory fails, which it does not.
    pub fn to_csv(&self) -> Result<Vec<u8>, MatchError> {
        let io = |source: csv::Error| MatchError::Io {
            action: "write",
            path: "ids.csv".into(),
            source: std::io::Error::other(source),
        };
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(HEADER).map_err(io)?;
        let mut hot = self.hot.iter().peekable();
        for (position, template) in self.templates.iter().enumerate() {
            let is_hot = hot.next_if(|&&at| at as usize == position).is_some();
            let color = template.color_id.as_deref().unwrap_or("");
            writer
                .write_record([
                    template.part_id.as_str(),
                    color,
                    template.view.as_str(),
                    if is_hot { "1" } else { "0" },
                ])
                .map_err(io)?;
        }
        writer.into_inner().map_err(|error| io(error.into_error().into()))
    }

    /// # Errors
    /// A sentence saying what is wrong and in which line.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = csv::Reader::from_reader(bytes);
        let header = reader.headers().map_err(|error| format!("ids.csv: {error}"))?;
        if header != &csv::StringRecord::from(HEADER.to_vec()) {
            return Err(format!("ids.csv: the header is not `{}`", HEADER.join(",")));
        }
        let (mut templates, mut hot) = (Vec::new(), Vec::new());
        for record in reader.records() {
            let record = record.map_err(|error| format!("ids.csv: {error}"))?;
            if &record[3] == "1" {
                hot.push(u32::try_from(templates.len()).map_err(|_| "ids.csv has 2^32 rows".to_owned())?);
            }
            templates.push(Template {
                part_id: record[0].to_owned(),
                color_id: (!record[1].is_empty()).then(|| record[1].to_owned()),
                view: record[2].to_owned(),
            });
        }
        Self::new(templates, hot).map_err(|error| format!("ids.csv: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Template, TemplateIds};

    fn template(part: &str, color: Option<&str>) -> Template {
        Template { part_id: part.to_owned(), color_id: color.map(str::to_owned), view: "0".to_owned() }
    }

    #[test]
    fn csv_keeps_quotes_commas_and_missing_colours() {
        let templates = vec![template("a,\"b", Some("71")), template("c", None), template("a,\"b", None)];
        let ids = TemplateIds::new(templates, vec![0, 2]).unwrap();
        assert_eq!((ids.len(), ids.part_count(), ids.parts()), (3, 2, &[0, 1, 0][..]));
        assert!(!ids.hot_covers_all_parts(), "part c is not hot");
        assert_eq!(TemplateIds::parse(&ids.to_csv().unwrap()).unwrap(), ids);
    }

    #[test]
    fn unnamed_parts_and_wrong_hot_rows_are_refused() {
        assert!(TemplateIds::new(vec![], vec![]).is_err());
        assert!(TemplateIds::new(vec![template("", None)], vec![]).is_err());
        assert!(TemplateIds::new(vec![template("a", None)], vec![1]).is_err());
        assert!(TemplateIds::new(vec![template("a", None), template("b", None)], vec![1, 0]).is_err());
        assert!(TemplateIds::parse(b"part_id,color_id\na,b\n").unwrap_err().contains("header"));
        assert!(TemplateIds::parse(b"part_id,color_id,view,hot\na,b\n").is_err());
    }
}
