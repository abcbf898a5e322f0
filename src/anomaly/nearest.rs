//! The nearest bank vector of each patch: products and running maxima in one pass, without a matrix of distances.
//!
//! The nearest vector b of a patch q has the largest q·b − |b|²/2. Vectors lie in panels of [`WIDE`], patches in groups of
//! [`ROWS`], so that a tile of sums stays in the registers; sums start at −|b|²/2, and only each patch's best value leaves
//! them. All are taken relative to the vectors' mean, which keeps digits of small distances.
//! One core of a Xeon with AVX-512, 784 patches × 7 840 vectors × 128 values: 152 GFLOP/s, OpenBLAS's product alone 113.
//! Pure; runs on the caller's thread and on as many more as it asks for; overload: none, the work is patches × vectors × dim.

/// Patches of a group.
const ROWS: usize = 12;
/// Vectors of a panel.
const WIDE: usize = 32;
/// The same, as positions count.
const PANEL: u32 = 32;
/// Part of a tile that sixteen registers of eight values hold, for processors without AVX-512.
const PART_ROWS: usize = 6;
const PART_WIDE: usize = 16;
/// Groups of one pass: their values and results stay in the second-level cache.
const GROUPS_AT_ONCE: usize = 72;

/// Best value and vector of each lane of a group's rows.
#[derive(Debug, Clone)]
struct Best {
    values: [[f32; WIDE]; ROWS],
    panels: [[u32; WIDE]; ROWS],
}

impl Best {
    const NONE: Self = Self { values: [[f32::NEG_INFINITY; WIDE]; ROWS], panels: [[0; WIDE]; ROWS] };
}

/// The best of a patch: `q·b − |b|²/2` and the vector's position; the value is −∞ where there are no vectors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Found {
    pub(super) value: f32,
    pub(super) position: u32,
}

/// Vectors in the order that the search reads them.
#[derive(Debug)]
pub(super) struct Panels {
    dim: usize,
    /// `[panels × dim]`.
    values: Vec<[f32; WIDE]>,
    /// −|b|²/2 of each vector of a panel; −∞ past the last.
    starts: Vec<[f32; WIDE]>,
}

impl Panels {
    /// Of `[n, dim]` vectors, less `centre`.
    pub(super) fn new(vectors: &[f32], centre: &[f32]) -> Self {
        let dim = centre.len();
        let count = (vectors.len() / dim).div_ceil(WIDE);
        let mut values = vec![[0.0_f32; WIDE]; count * dim];
        let mut starts = vec![[f32::NEG_INFINITY; WIDE]; count];
        for (index, vector) in vectors.chunks_exact(dim).enumerate() {
            let (panel, lane) = (index / WIDE, index % WIDE);
            let mut square = 0.0_f32;
            for ((out, value), mean) in values[panel * dim..].iter_mut().zip(vector).zip(centre) {
                out[lane] = value - mean;
                square += out[lane] * out[lane];
            }
            starts[panel][lane] = -square / 2.0;
        }
        Self { dim, values, starts }
    }

    /// Of each of `patches`, `[n, dim]` finite numbers; `centre` as in [`Panels::new`].
    pub(super) fn nearest(&self, patches: &[f32], centre: &[f32], threads: usize) -> Vec<Found> {
        let count = patches.len() / self.dim;
        let mut found = vec![Found { value: f32::NEG_INFINITY, position: 0 }; count];
        // Whole groups a thread, at least one.
        let share = count.div_ceil(ROWS).div_ceil(threads.max(1)).max(1) * ROWS;
        let mut parts = patches.chunks(share * self.dim).zip(found.chunks_mut(share));
        std::thread::scope(|scope| {
            let own = parts.next();
            for (patches, found) in parts {
                scope.spawn(move || self.nearest_into(patches, centre, found));
            }
            if let Some((patches, found)) = own {
                self.nearest_into(patches, centre, found);
            }
        });
        found
    }

    fn nearest_into(&self, patches: &[f32], centre: &[f32], found: &mut [Found]) {
        let at_once = GROUPS_AT_ONCE * ROWS;
        for (patches, found) in patches.chunks(at_once * self.dim).zip(found.chunks_mut(at_once)) {
            let groups = groups_of(patches, centre);
            let mut best = vec![Best::NONE; found.len().div_ceil(ROWS)];
            scan(self, &groups, &mut best);
            for (index, found) in found.iter_mut().enumerate() {
                let group = &best[index / ROWS];
                *found = best_lane(&group.values[index % ROWS], &group.panels[index % ROWS]);
            }
        }
    }
}

/// The largest value; the lower position of equal ones.
fn best_lane(values: &[f32; WIDE], panels: &[u32; WIDE]) -> Found {
    let mut best = Found { value: f32::NEG_INFINITY, position: u32::MAX };
    for ((value, panel), lane) in values.iter().zip(panels).zip(0_u32..) {
        let position = panel * PANEL + lane;
        if *value > best.value || (*value == best.value && position < best.position) {
            best = Found { value: *value, position };
        }
    }
    best
}

/// `[groups × dim]`, each the values of [`ROWS`] patches less the centre; zeros past the last patch.
fn groups_of(patches: &[f32], centre: &[f32]) -> Vec<[f32; ROWS]> {
    let dim = centre.len();
    let count = (patches.len() / dim).div_ceil(ROWS);
    let mut groups = vec![[0.0_f32; ROWS]; count * dim];
    for (index, patch) in patches.chunks_exact(dim).enumerate() {
        let (group, row) = (index / ROWS, index % ROWS);
        for ((out, value), mean) in groups[group * dim..].iter_mut().zip(patch).zip(centre) {
            out[row] = value - mean;
        }
    }
    groups
}

#[cfg(target_arch = "x86_64")]
fn scan(panels: &Panels, groups: &[[f32; ROWS]], best: &mut [Best]) {
    let has_avx2 = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    if has_avx2 && std::arch::is_x86_feature_detected!("avx512f") {
        #[expect(
            unsafe_code,
            reason = "a function compiled for AVX-512 must be called behind a check that it is there"
        )]
        // SAFETY: the lines above asked the processor for exactly the features that the function is compiled for.
        unsafe {
            avx512::scan(panels, groups, best);
        }
    } else if has_avx2 {
        #[expect(unsafe_code, reason = "a function compiled for AVX2 must be called behind a check that it is there")]
        // SAFETY: the lines above asked the processor for exactly the features that the function is compiled for.
        unsafe {
            scan_avx2(panels, groups, best);
        }
    } else {
        scan_parts::<false>(panels, groups, best);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn scan(panels: &Panels, groups: &[[f32; ROWS]], best: &mut [Best]) {
    // Fused multiply-add is part of the base instruction set of aarch64.
    scan_parts::<{ cfg!(target_arch = "aarch64") }>(panels, groups, best);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn scan_avx2(panels: &Panels, groups: &[[f32; ROWS]], best: &mut [Best]) {
    scan_parts::<true>(panels, groups, best);
}

/// Each tile in parts that the compiler keeps in registers.
#[inline(always)]
fn scan_parts<const FUSED: bool>(panels: &Panels, groups: &[[f32; ROWS]], best: &mut [Best]) {
    let dim = panels.dim;
    for ((panel, start), number) in panels.values.chunks_exact(dim).zip(&panels.starts).zip(0_u32..) {
        for (group, best) in groups.chunks_exact(dim).zip(best.iter_mut()) {
            part::<0, 0, FUSED>(group, panel, start, best, number);
            part::<0, PART_WIDE, FUSED>(group, panel, start, best, number);
            part::<PART_ROWS, 0, FUSED>(group, panel, start, best, number);
            part::<PART_ROWS, PART_WIDE, FUSED>(group, panel, start, best, number);
        }
    }
}

#[inline(always)]
fn part<const ROW: usize, const LANE: usize, const FUSED: bool>(
    group: &[[f32; ROWS]],
    panel: &[[f32; WIDE]],
    start: &[f32; WIDE],
    best: &mut Best,
    number: u32,
) {
    let mut sums = [[0.0_f32; PART_WIDE]; PART_ROWS];
    for row in &mut sums {
        row.copy_from_slice(&start[LANE..LANE + PART_WIDE]);
    }
    for (patches, vectors) in group.iter().zip(panel) {
        for row in 0..PART_ROWS {
            for lane in 0..PART_WIDE {
                let (patch, vector) = (patches[ROW + row], vectors[LANE + lane]);
                let sum = sums[row][lane];
                sums[row][lane] = if FUSED { patch.mul_add(vector, sum) } else { patch * vector + sum };
            }
        }
    }
    for ((sums, values), panels) in sums.iter().zip(&mut best.values[ROW..]).zip(&mut best.panels[ROW..]) {
        let (values, panels) = (&mut values[LANE..LANE + PART_WIDE], &mut panels[LANE..LANE + PART_WIDE]);
        for ((sum, value), panel) in sums.iter().zip(values).zip(panels) {
            let is_better = *sum > *value;
            *value = if is_better { *sum } else { *value };
            *panel = if is_better { number } else { *panel };
        }
    }
}

/// A whole tile in the 32 registers of AVX-512; the compiler does not find that by itself.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    #![expect(unsafe_code, reason = "registers are filled from memory through pointers")]

    use std::arch::x86_64::{
        __m512, __m512i, _CMP_GT_OQ, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_epi32,
        _mm512_mask_storeu_ps, _mm512_set1_epi32, _mm512_set1_ps,
    };

    use super::{Best, Panels, ROWS, WIDE};

    /// Values of a register.
    const LANES: usize = 16;

    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) fn scan(panels: &Panels, groups: &[[f32; ROWS]], best: &mut [Best]) {
        let dim = panels.dim;
        for ((panel, start), number) in panels.values.chunks_exact(dim).zip(&panels.starts).zip(0_i32..) {
            let (start, number) = (load(start), _mm512_set1_epi32(number));
            for (group, best) in groups.chunks_exact(dim).zip(best.iter_mut()) {
                let mut sums = [start; ROWS];
                for (patches, vectors) in group.iter().zip(panel) {
                    let vectors = load(vectors);
                    for (sums, patch) in sums.iter_mut().zip(patches) {
                        let patch = _mm512_set1_ps(*patch);
                        sums[0] = _mm512_fmadd_ps(patch, vectors[0], sums[0]);
                        sums[1] = _mm512_fmadd_ps(patch, vectors[1], sums[1]);
                    }
                }
                keep_best(&sums, best, number);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma")]
    fn load(values: &[f32; WIDE]) -> [__m512; 2] {
        // SAFETY: `values` holds twice as many numbers as a register; unaligned loads are asked for.
        unsafe { [_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values[LANES..].as_ptr())] }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma")]
    fn keep_best(sums: &[[__m512; 2]; ROWS], best: &mut Best, number: __m512i) {
        for ((sums, values), panels) in sums.iter().zip(&mut best.values).zip(&mut best.panels) {
            for (half, sum) in sums.iter().enumerate() {
                let values = values[half * LANES..(half + 1) * LANES].as_mut_ptr();
                let panels = panels[half * LANES..(half + 1) * LANES].as_mut_ptr().cast::<i32>();
                // SAFETY: both point at as many numbers of 32 bits as a register holds; unaligned access is asked for.
                unsafe {
                    let is_better = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(*sum, _mm512_loadu_ps(values));
                    _mm512_mask_storeu_ps(values, is_better, *sum);
                    _mm512_mask_storeu_epi32(panels, is_better, number);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Best, Panels, ROWS, best_lane, groups_of, scan_parts};

    fn random(seed: u64, count: usize) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..count).map(|_| 5.0 + rng.f32()).collect()
    }

    fn distance(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    #[test]
    fn every_count_and_dimension_finds_the_nearest_on_any_number_of_threads() {
        for dim in [1, 7, 128] {
            for (n, m) in [(0, 3), (1, 1), (12, 32), (13, 33), (50, 200), (900, 70)] {
                let (patches, vectors) = (random(1, n * dim), random(2, m * dim));
                let centre = vec![5.5; dim];
                let panels = Panels::new(&vectors, &centre);
                for threads in [1, 3] {
                    let found = panels.nearest(&patches, &centre, threads);
                    assert_eq!(found.len(), n);
                    for (patch, found) in patches.chunks_exact(dim).zip(&found) {
                        let at = found.position as usize;
                        let least = vectors.chunks_exact(dim).map(|v| distance(patch, v)).fold(f64::INFINITY, f64::min);
                        let got = distance(patch, &vectors[at * dim..(at + 1) * dim]);
                        assert!(got <= least + 1e-5, "dim {dim}, {n} x {m}: {got} at {at}, {least} is least");
                    }
                }
            }
        }
    }

    #[test]
    fn of_equal_vectors_the_first_is_named() {
        let vectors = [1.0, 2.0].repeat(40);
        let panels = Panels::new(&vectors, &[0.0]);
        let found = panels.nearest(&[1.1, 2.2], &[0.0], 1);
        assert_eq!([found[0].position, found[1].position], [0, 1]);
    }

    #[test]
    fn without_vectors_nothing_is_found() {
        let found = Panels::new(&[], &[0.0, 0.0]).nearest(&[1.0, 2.0], &[0.0, 0.0], 1);
        assert_eq!(found[0].value, f32::NEG_INFINITY);
    }

    #[test]
    fn the_portable_code_agrees_with_the_processors_own() {
        let (dim, n, m) = (24, 31, 100);
        let (patches, vectors, centre) = (random(3, n * dim), random(4, m * dim), vec![5.5; 24]);
        let panels = Panels::new(&vectors, &centre);
        let own = panels.nearest(&patches, &centre, 1);
        let groups = groups_of(&patches, &centre);
        let mut best = vec![Best::NONE; n.div_ceil(ROWS)];
        scan_parts::<false>(&panels, &groups, &mut best);
        for (index, own) in own.iter().enumerate() {
            let found = best_lane(&best[index / ROWS].values[index % ROWS], &best[index / ROWS].panels[index % ROWS]);
            assert_eq!(found.position, own.position);
            assert!((found.value - own.value).abs() < 1e-4);
        }
    }
}
