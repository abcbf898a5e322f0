//! How alike an item is to all that is known of a part: the mean over its templates, not the nearest one alone.
//!
//! `ln mean exp(β cos) / β` over the part's templates is the logarithm of a kernel density of its views (von Mises and
//! Fisher; β is the concentration), so one template that happens to lie near counts for less than several that do. Of one
//! template it is that one's cosine. On the hard queries of docs/benchmarks.md it names 2 points more right than the
//! nearest cosine, and tells unknown parts better.
//! Beside it stands the cosine with the part's *centre*: the direction that the embedder learned for the part, where it did
//! ([`super::Centres`]), else that of the sum of its catalogue views. What the network learned tells unknown parts best and
//! mirror pairs worst, the views the other way round, so a fit weighs both.
//! Pure. Overload: none, the work is the templates of the parts that are asked for.

use super::kernel;
use super::search::normalise;

/// Least length of a sum of vectors of length 1 that still points anywhere.
const NORM_MIN: f32 = 1e-3;
/// β. Between 4 and 12 the sample catalogue's results are the same within half a point.
const CONCENTRATION: f32 = 8.0;

/// How alike an item is to all that is known of a part.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Alike {
    /// [`likeness`].
    pub likeness: Option<f32>,
    /// [`centre`].
    pub centre: Option<f32>,
}

impl Alike {
    /// Of two pictures of one item, where both say something; else what this one says.
    pub fn mean(self, other: Self) -> Self {
        let of =
            |one: Option<f32>, other: Option<f32>| one.zip(other).map(|(one, other)| f32::midpoint(one, other)).or(one);
        Self { likeness: of(self.likeness, other.likeness), centre: of(self.centre, other.centre) }
    }
}

/// The likeness by the cosines with a part's catalogue views and with those that people taught, −1 to 1; `None` where there
/// are neither. Where there are both, each kind stands for half: a taught view comes from the camera that asks, and must
/// not be one voice among eighteen.
pub(super) fn likeness(catalogue: impl IntoIterator<Item = f32>, taught: impl IntoIterator<Item = f32>) -> Option<f32> {
    let density = match (mean_exp(catalogue), mean_exp(taught)) {
        (Some(catalogue), Some(taught)) => f32::midpoint(catalogue, taught),
        (one, other) => one.or(other)?,
    };
    Some(density.ln() / CONCENTRATION)
}

/// Cosine of `query` with the part's centre and with the direction of the views that people taught, all of length 1: −1 to 1;
/// `None` where there is neither. Where there are both, it is that with the direction halfway between them.
pub(super) fn centre(query: &[f32], centre: Option<&[f32]>, taught: Option<&[f32]>) -> Option<f32> {
    match (centre, taught) {
        (Some(centre), Some(taught)) => Some(cosine(query, &direction([centre, taught].into_iter())?)),
        (one, other) => Some(cosine(query, one.or(other)?)),
    }
}

/// Where the sum of `vectors` points, of length 1; `None` of nothing, and of vectors that cancel out. Of vectors of length 1
/// it is the likeliest mean of a von Mises and Fisher distribution (Mardia and Jupp, Directional Statistics, 2000, section
/// 10.3.1).
pub(super) fn direction<'a>(mut vectors: impl Iterator<Item = &'a [f32]>) -> Option<Vec<f32>> {
    let mut sum = vectors.next()?.to_vec();
    for vector in vectors {
        sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
    }
    // What is left where they cancel out is rounding.
    let points_somewhere = cosine(&sum, &sum) > NORM_MIN * NORM_MIN;
    (points_somewhere && normalise(&mut sum).is_ok()).then_some(sum)
}

/// Mean of `exp(β cos)`; `None` of nothing.
fn mean_exp(cosines: impl IntoIterator<Item = f32>) -> Option<f32> {
    let (mut sum, mut count) = (0.0_f32, 0.0_f32);
    for cosine in cosines {
        sum += (CONCENTRATION * cosine).exp();
        count += 1.0;
    }
    (count > 0.0).then(|| sum / count)
}

/// Inner product of `query` and `vector`: their cosine where both are of length 1.
pub(super) fn cosine(query: &[f32], vector: &[f32]) -> f32 {
    let mut out = [f32::NAN];
    kernel::similarities_into(query, vector, query.len(), &mut out);
    out[0]
}

/// The rows of each part's templates: the cold tier keeps a list's rows together, not a part's.
#[derive(Debug)]
pub(super) struct PartRows {
    /// Where each part's rows begin in `rows`, and their number.
    starts: Vec<u32>,
    /// Ascending within a part.
    rows: Vec<u32>,
}

impl PartRows {
    /// `parts`: the part's number of each row; one beyond `part_count` names nothing.
    pub fn new(parts: impl Iterator<Item = u32> + Clone, part_count: usize) -> Self {
        let known = parts.zip(0_u32..).filter(|(part, _)| (*part as usize) < part_count);
        let mut starts = vec![0_u32; part_count + 1];
        known.clone().for_each(|(part, _)| starts[part as usize + 1] += 1);
        (0..part_count).for_each(|part| starts[part + 1] += starts[part]);
        let mut next = starts.clone();
        let mut rows = vec![0_u32; starts[part_count] as usize];
        for (part, row) in known {
            rows[next[part as usize] as usize] = row;
            next[part as usize] += 1;
        }
        Self { starts, rows }
    }

    /// Rows of the templates of `part`; none for a part that is not here.
    pub fn of(&self, part: u32) -> &[u32] {
        let bounds = self.starts.get(part as usize).zip(self.starts.get(part as usize + 1));
        bounds.map_or(&[], |(&from, &to)| &self.rows[from as usize..to as usize])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::{PartRows, centre, direction, likeness};

    /// Of length 1, so many degrees from the first axis.
    fn at(degrees: f32) -> [f32; 2] {
        let (sin, cos) = degrees.to_radians().sin_cos();
        [cos, sin]
    }

    fn mean(degrees: &[f32]) -> Vec<f32> {
        let views: Vec<[f32; 2]> = degrees.iter().copied().map(at).collect();
        direction(views.iter().map(<[f32; 2]>::as_slice)).unwrap()
    }

    #[test]
    fn several_near_views_say_more_than_one_nearest() {
        let one = likeness([0.80, 0.1, 0.1], []).unwrap();
        let several = likeness([0.75, 0.75, 0.75], []).unwrap();
        assert!(several > one, "{several} against {one}");
        assert!((likeness([0.6], []).unwrap() - 0.6).abs() < 1e-6);
        assert_eq!(likeness([], []), None);
        assert!(likeness([f32::NAN], [0.9]).unwrap().is_nan());
    }

    #[test]
    fn one_taught_view_is_heard_among_eighteen_of_the_catalogue() {
        let catalogue = [0.3; 18];
        let (untaught, taught) = (likeness(catalogue, []).unwrap(), likeness(catalogue, [0.98]).unwrap());
        assert!((untaught - 0.3).abs() < 1e-5 && taught > 0.85, "{untaught}, {taught}");
        let unlike = likeness(catalogue, [0.1]).unwrap();
        assert!(unlike > 0.2, "a taught view that is unlike takes little away: {unlike}");
        assert!((likeness([], [0.7]).unwrap() - 0.7).abs() < 1e-6, "a part that was only taught");
    }

    #[test]
    fn a_taught_view_moves_a_centre_halfway_to_itself() {
        let (item, catalogue) = (at(0.0), mean(&[75.0; 18]));
        let untaught = centre(&item, Some(&catalogue), None).unwrap();
        let taught = centre(&item, Some(&catalogue), Some(&at(5.0))).unwrap();
        assert!(untaught < 0.3 && (taught - 40.0_f32.to_radians().cos()).abs() < 1e-5, "{untaught}, {taught}");
        assert!((centre(&item, None, Some(&at(60.0))).unwrap() - 0.5).abs() < 1e-6, "a part that was only taught");
        assert_eq!(centre(&item, None, None), None);
        assert_eq!(centre(&item, Some(&at(30.0)), Some(&at(210.0))), None, "halfway is nowhere");
        assert_eq!(direction(std::iter::empty()), None);
    }

    proptest! {
        #[test]
        fn more_views_of_the_same_places_move_no_centre(
            degrees in proptest::collection::vec(-80.0_f32..80.0, 1..40), item in -180.0_f32..180.0,
        ) {
            let twice: Vec<f32> = degrees.iter().chain(&degrees).copied().collect();
            let value = centre(&at(item), Some(&mean(&degrees)), None).unwrap();
            let again = centre(&at(item), Some(&mean(&twice)), None).unwrap();
            prop_assert!((value - again).abs() < 1e-4 && value.abs() <= 1.0 + 1e-5, "{value}, {again}");
        }

        #[test]
        fn it_lies_between_mean_and_nearest(cosines in proptest::collection::vec(-1.0_f32..1.0, 1..40)) {
            let value = likeness(cosines.iter().copied(), []).unwrap();
            #[expect(clippy::cast_precision_loss, reason = "fewer than 40")]
            let mean = cosines.iter().sum::<f32>() / cosines.len() as f32;
            let nearest = cosines.iter().copied().fold(f32::MIN, f32::max);
            prop_assert!(value >= mean - 1e-4 && value <= nearest + 1e-4, "{value} of {cosines:?}");
        }

        #[test]
        fn every_row_of_a_known_part_is_found_once(parts in proptest::collection::vec(0_u32..9, 0..200), count in 0_usize..9) {
            let rows = PartRows::new(parts.iter().copied(), count);
            let mut found = 0;
            for part in 0..12_u32 {
                let of_part = rows.of(part);
                found += of_part.len();
                prop_assert!(of_part.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(of_part.iter().all(|&row| parts[row as usize] == part));
            }
            prop_assert_eq!(found, parts.iter().filter(|&&part| (part as usize) < count).count());
            prop_assert!(rows.of(u32::MAX).is_empty());
        }
    }
}
