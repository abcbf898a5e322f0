//! Binary masks: morphology and connected components.

/// `[height, width]`, 255 = part, 0 = background.
#[derive(Debug, Clone)]
pub(super) struct Mask {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<u8>,
}

/// A connected component: its box (ends exclusive) and pixel count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Component {
    pub left: usize,
    pub top: usize,
    pub right: usize,
    pub bottom: usize,
    pub pixels: usize,
}

impl Mask {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height] }
    }

    /// Remove what is thinner than `2 radius + 1` pixels.
    pub(super) fn open(&mut self, radius: usize) {
        self.filter(radius, u8::min);
        self.filter(radius, u8::max);
    }

    /// Fill gaps narrower than `2 radius + 1` pixels.
    pub(super) fn close(&mut self, radius: usize) {
        self.filter(radius, u8::max);
        self.filter(radius, u8::min);
    }

    /// Square rank filter, separable; outside the picture counts as whatever changes nothing.
    fn filter(&mut self, radius: usize, pick: impl Fn(u8, u8) -> u8 + Copy) {
        if radius == 0 {
            return;
        }
        let mut wide = self.pixels.clone();
        for (source, target) in self.pixels.chunks_exact(self.width).zip(wide.chunks_exact_mut(self.width)) {
            for shift in 1..=radius.min(self.width - 1) {
                combine(&mut target[shift..], &source[..self.width - shift], pick);
                combine(&mut target[..self.width - shift], &source[shift..], pick);
            }
        }
        self.pixels.copy_from_slice(&wide);
        for shift in 1..=radius.min(self.height - 1) {
            let offset = shift * self.width;
            let rest = wide.len() - offset;
            combine(&mut self.pixels[offset..], &wide[..rest], pick);
            combine(&mut self.pixels[..rest], &wide[offset..], pick);
        }
    }

    /// 8-connected components, top to bottom, by runs and union-find.
    pub(super) fn components(&self) -> Vec<Component> {
        let mut runs: Vec<Run> = Vec::new();
        let mut parents: Vec<usize> = Vec::new();
        let mut above = 0..0;
        for (y, row) in self.pixels.chunks_exact(self.width).enumerate() {
            let begin = runs.len();
            push_runs(row, y, &mut runs);
            parents.extend(begin..runs.len());
            let mut candidate = above.start;
            for index in begin..runs.len() {
                // Runs touch when they overlap by a column, corners included.
                while candidate < above.end && runs[candidate].right < runs[index].left {
                    candidate += 1;
                }
                let mut touching = candidate;
                while touching < above.end && runs[touching].left <= runs[index].right {
                    union(&mut parents, touching, index);
                    touching += 1;
                }
            }
            above = begin..runs.len();
        }
        gather(&runs, &mut parents)
    }
}

#[derive(Debug, Clone, Copy)]
struct Run {
    y: usize,
    left: usize,
    /// Exclusive.
    right: usize,
}

fn push_runs(row: &[u8], y: usize, runs: &mut Vec<Run>) {
    let mut x = 0;
    while let Some(start) = row[x..].iter().position(|&pixel| pixel != 0) {
        let left = x + start;
        let right = row[left..].iter().position(|&pixel| pixel == 0).map_or(row.len(), |length| left + length);
        runs.push(Run { y, left, right });
        x = right;
    }
}

fn gather(runs: &[Run], parents: &mut [usize]) -> Vec<Component> {
    let mut slots = vec![usize::MAX; runs.len()];
    let mut components: Vec<Component> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let root = find(parents, index);
        if slots[root] == usize::MAX {
            slots[root] = components.len();
            components.push(Component { left: run.left, top: run.y, right: run.right, bottom: run.y + 1, pixels: 0 });
        }
        let component = &mut components[slots[root]];
        component.left = component.left.min(run.left);
        component.right = component.right.max(run.right);
        component.bottom = run.y + 1;
        component.pixels += run.right - run.left;
    }
    components
}

fn find(parents: &mut [usize], mut index: usize) -> usize {
    while parents[index] != index {
        parents[index] = parents[parents[index]];
        index = parents[index];
    }
    index
}

fn union(parents: &mut [usize], a: usize, b: usize) {
    let (a, b) = (find(parents, a), find(parents, b));
    parents[a.max(b)] = a.min(b);
}

fn combine(target: &mut [u8], source: &[u8], pick: impl Fn(u8, u8) -> u8) {
    for (target, &source) in target.iter_mut().zip(source) {
        *target = pick(*target, source);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(rows: &[&str]) -> Mask {
        let pixels = rows.iter().flat_map(|row| row.bytes().map(|byte| if byte == b'#' { 255 } else { 0 })).collect();
        Mask { width: rows[0].len(), height: rows.len(), pixels }
    }

    #[test]
    fn components_join_over_corners_and_forks() {
        let mask = mask(&["#.#..#", "#.#...", "###..#", "......", ".#....", "#....."]);
        let found = mask.components();
        assert_eq!(found.len(), 4);
        assert_eq!(found[0], Component { left: 0, top: 0, right: 3, bottom: 3, pixels: 7 });
        assert_eq!(found[3], Component { left: 0, top: 4, right: 2, bottom: 6, pixels: 2 });
    }

    #[test]
    fn opening_drops_specks_and_closing_fills_gaps() {
        let mut specks = mask(&["#....", ".###.", ".###.", ".###.", "....."]);
        specks.open(1);
        assert_eq!(specks.components().iter().map(|c| c.pixels).collect::<Vec<_>>(), [9]);
        let mut gaps = mask(&["##.##", "##.##", "##.##"]);
        gaps.close(1);
        assert_eq!(gaps.components().len(), 1);
    }

    proptest! {
        #[test]
        fn components_account_for_every_pixel(width in 1_usize..20, bits in proptest::collection::vec(any::<bool>(), 1..300)) {
            let height = bits.len().div_ceil(width);
            let mut mask = Mask::new(width, height);
            for (pixel, &bit) in mask.pixels.iter_mut().zip(&bits) {
                *pixel = if bit { 255 } else { 0 };
            }
            let total: usize = mask.components().iter().map(|component| component.pixels).sum();
            prop_assert_eq!(total, bits.iter().filter(|&&bit| bit).count());
            for radius in 0..4 {
                mask.open(radius);
                mask.close(radius);
            }
        }
    }
}
