//! The inverted lists of the cold tier: `l2.lists` says where each list begins and which direction it gathers,
//! `l2.vectors` holds the vectors in the order of the lists.
//!
//! ```text
//! l2.lists    "LOUPEL2\0", u32 version, u32 dim, u32 lists, u32 0, u64 rows, zeros to byte 64;
//!             u32 × (lists + 1): first row of each list, and the number of rows; zeros to a multiple of 64;
//!             f32 × (lists × dim): centroids, of length 1
//! l2.vectors  f32 × (rows × dim), nothing else, so that every vector is aligned and a list is one run of memory
//! ```
//! Row = position of the template in `ids.bin`, so a hit needs no table of ids.
//! Why not FAISS's own file: docs/adr/0007-own-inverted-lists.md.
//! Invariant: an opened table's rows ascend and end at the number of rows, so every list lies within the vectors.
//! Thread: any number at once, no lock. Overload: none, the work is bounded by the lists visited.

use std::path::Path;

use super::kernel;
use super::map::Map;

const MAGIC: &[u8; 8] = b"LOUPEL2\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
/// Vectors compared between two looks at the results: their similarities stay in the first-level cache.
const ROWS_AT_ONCE: usize = 256;

/// Which rows lie in which list.
#[derive(Debug)]
pub struct Lists {
    table: Map,
    dim: usize,
    count: usize,
    rows: usize,
    centroids_at: usize,
}

impl Lists {
    /// Map the table at `path`.
    ///
    /// # Errors
    /// A sentence saying what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, String> {
        let table = Map::open(path).map_err(|error| format!("l2.lists cannot be mapped: {error}"))?;
        let short = || "l2.lists is cut short".to_owned();
        if table.values::<u8>(0, MAGIC.len()).ok_or_else(short)? != MAGIC {
            return Err("l2.lists does not begin like a table of lists".to_owned());
        }
        let header = table.values::<u32>(0, HEADER_BYTES / 4).ok_or_else(short)?;
        let (version, dim, count) = (header[2], header[3] as usize, header[4] as usize);
        let rows = header[6] as usize | (header[7] as usize) << 32;
        if version != VERSION || dim == 0 || count == 0 {
            return Err(format!("l2.lists has version {version}, {dim} values a vector and {count} lists"));
        }
        let centroids_at = centroids_at(count);
        let lists = Self { table, dim, count, rows, centroids_at };
        let starts = lists.table.values::<u32>(HEADER_BYTES, count + 1).ok_or_else(short)?;
        let ascend = starts.windows(2).all(|pair| pair[0] <= pair[1]);
        if !ascend || starts[0] != 0 || starts[count] as usize != rows {
            return Err(format!("the lists of l2.lists do not add up to its {rows} rows"));
        }
        lists.table.values::<f32>(centroids_at, count * dim).ok_or_else(short)?;
        Ok(lists)
    }

    /// The file's bytes. `starts`: first row of each list and the number of rows; `centroids` `[lists, dim]`.
    #[must_use]
    pub fn to_bytes(dim: usize, starts: &[u32], centroids: &[f32]) -> Vec<u8> {
        let count = starts.len().saturating_sub(1);
        let rows = starts.last().copied().unwrap_or(0);
        let mut bytes = Vec::with_capacity(centroids_at(count) + centroids.len() * 4);
        bytes.extend_from_slice(MAGIC);
        for field in [VERSION, u32::try_from(dim).unwrap_or(0), u32::try_from(count).unwrap_or(0), 0, rows, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.resize(HEADER_BYTES, 0);
        starts.iter().for_each(|start| bytes.extend_from_slice(&start.to_le_bytes()));
        bytes.resize(centroids_at(count), 0);
        centroids.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
        bytes
    }

    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Vectors in all lists.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of lists.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// First row of each list, and the number of rows.
    #[must_use]
    pub fn starts(&self) -> &[u32] {
        self.table.values(HEADER_BYTES, self.count + 1).unwrap_or(&[])
    }

    /// `[lists, dim]`.
    #[must_use]
    pub fn centroids(&self) -> &[f32] {
        self.table.values(self.centroids_at, self.count * self.dim).unwrap_or(&[])
    }

    /// Compare `queries` `[n, dim]` with the vectors of the `nprobe` lists nearest to each, and hand every similarity to
    /// `found(query, first row, similarities)`. `vectors` `[rows, dim]` in the order of the lists.
    ///
    /// Lists that several queries visit are read once for all of them; with `nprobe` of all lists there is nothing to
    /// choose and the vectors are read once in order.
    pub fn scan(&self, vectors: &[f32], queries: &[f32], nprobe: usize, mut found: impl FnMut(usize, usize, &[f32])) {
        let dim = self.dim;
        let n = queries.len() / dim;
        let mut out = vec![0.0_f32; n * ROWS_AT_ONCE];
        if nprobe >= self.count {
            let all: Vec<usize> = (0..n).collect();
            scan_rows(vectors, 0..self.rows, dim, queries, &all, &mut out, &mut found);
            return;
        }
        let mut visits = self.visits(queries, nprobe);
        let starts = self.starts();
        let rows_of = |list: u32| starts[list as usize] as usize..starts[list as usize + 1] as usize;
        if n == 1 {
            for (list, _) in visits {
                scan_rows(vectors, rows_of(list), dim, queries, &[0], &mut out, &mut found);
            }
            return;
        }
        visits.sort_unstable();
        let mut group_queries = Vec::new();
        for group in visits.chunk_by(|a, b| a.0 == b.0) {
            let members: Vec<usize> = group.iter().map(|visit| visit.1 as usize).collect();
            group_queries.clear();
            members.iter().for_each(|&at| group_queries.extend_from_slice(&queries[at * dim..(at + 1) * dim]));
            scan_rows(vectors, rows_of(group[0].0), dim, &group_queries, &members, &mut out, &mut found);
        }
    }

    /// The `nprobe` lists nearest to each query as (list, query), those of one query together, nearest first.
    #[must_use]
    pub fn visits(&self, queries: &[f32], nprobe: usize) -> Vec<(u32, u32)> {
        let to_centroids = kernel::similarities(queries, self.centroids(), self.dim);
        let nprobe = nprobe.clamp(1, self.count);
        let mut visits = Vec::with_capacity(nprobe * (queries.len() / self.dim));
        let mut nearest: Vec<(f32, u32)> = Vec::with_capacity(nprobe + 1);
        for (query, row) in (0_u32..).zip(to_centroids.chunks_exact(self.count)) {
            nearest.clear();
            let mut least = f32::NEG_INFINITY;
            for (list, &similarity) in (0_u32..).zip(row) {
                // Of equally near lists the earlier.
                if nearest.len() == nprobe && similarity <= least {
                    continue;
                }
                let at = nearest.partition_point(|kept| kept.0 >= similarity);
                nearest.insert(at, (similarity, list));
                nearest.truncate(nprobe);
                least = nearest[nearest.len() - 1].0;
            }
            visits.extend(nearest.iter().map(|&(_, list)| (list, query)));
        }
        visits
    }
}

/// Where the centroids of a table of `count` lists begin.
fn centroids_at(count: usize) -> usize {
    (HEADER_BYTES + (count + 1) * 4).next_multiple_of(64)
}

/// Compare `queries`, numbered `members` by the caller, with the vectors of `rows`.
fn scan_rows(
    vectors: &[f32],
    rows: std::ops::Range<usize>,
    dim: usize,
    queries: &[f32],
    members: &[usize],
    out: &mut [f32],
    found: &mut impl FnMut(usize, usize, &[f32]),
) {
    let mut first = rows.start;
    while first < rows.end {
        let count = (rows.end - first).min(ROWS_AT_ONCE);
        let out = &mut out[..members.len() * count];
        kernel::similarities_into(queries, &vectors[first * dim..(first + count) * dim], dim, out);
        for (&member, similarities) in members.iter().zip(out.chunks_exact(count)) {
            found(member, first, similarities);
        }
        first += count;
    }
}

#[cfg(test)]
mod tests {
    use super::Lists;

    fn opened(bytes: &[u8]) -> Result<Lists, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Lists::open(file.path())
    }

    /// 40 vectors of 5 values in 4 lists, of 10, 0, 25 and 5 rows.
    fn sample() -> (Lists, Vec<f32>) {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut random = |count: usize| (0..count).map(|_| rng.f32() - 0.5).collect::<Vec<f32>>();
        let (centroids, vectors) = (random(4 * 5), random(40 * 5));
        (opened(&Lists::to_bytes(5, &[0, 10, 10, 35, 40], &centroids)).unwrap(), vectors)
    }

    #[test]
    fn a_batch_finds_what_single_queries_find_and_all_lists_are_everything() {
        let (lists, vectors) = sample();
        let queries: Vec<f32> = vectors[..7 * 5].iter().map(|value| value + 0.01).collect();
        for nprobe in [1, 2, 3, 4, usize::MAX] {
            let mut batch = vec![vec![f32::NAN; 40]; 7];
            lists.scan(&vectors, &queries, nprobe, |query, first, found| {
                batch[query][first..first + found.len()].copy_from_slice(found);
            });
            for (query, batch) in queries.chunks(5).zip(&batch) {
                let mut single = vec![f32::NAN; 40];
                lists.scan(&vectors, query, nprobe, |_, first, found| {
                    single[first..first + found.len()].copy_from_slice(found);
                });
                for (row, (a, b)) in batch.iter().zip(&single).enumerate() {
                    assert_eq!(a.is_nan(), b.is_nan(), "row {row} at nprobe {nprobe}");
                    let wanted: f32 = query.iter().zip(&vectors[row * 5..]).map(|(a, b)| a * b).sum();
                    assert!(a.is_nan() && nprobe < 4 || (a - wanted).abs() < 1e-5 && (b - wanted).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn the_nearest_lists_come_first() {
        let (lists, _) = sample();
        let centroid = lists.centroids()[10..15].to_vec();
        let visits = lists.visits(&centroid, 4);
        let similarity = |list: u32| -> f32 {
            lists.centroids()[list as usize * 5..].iter().zip(&centroid).map(|(a, b)| a * b).sum()
        };
        assert!(visits.windows(2).all(|pair| similarity(pair[0].0) >= similarity(pair[1].0)), "{visits:?}");
        assert_eq!(lists.visits(&centroid, 2), visits[..2]);
    }

    #[test]
    fn tables_that_are_cut_short_or_do_not_add_up_are_refused() {
        let bytes = Lists::to_bytes(2, &[0, 3, 5], &[1.0, 0.0, 0.0, 1.0]);
        assert!(opened(&bytes).is_ok());
        for length in [0, 7, 20, 63, 70, bytes.len() - 1] {
            assert!(opened(&bytes[..length]).is_err(), "{length} bytes");
        }
        for wrong in [[1, 3, 5], [0, 6, 5], [0, 3, 5]] {
            let mut bytes = Lists::to_bytes(2, &wrong, &[1.0, 0.0, 0.0, 1.0]);
            if wrong[0] == 0 && wrong[1] == 3 {
                bytes[24] = 9;
            }
            assert!(opened(&bytes).unwrap_err().contains("do not add up"));
        }
        let mut other = bytes;
        other[0] = b'X';
        assert!(opened(&other).unwrap_err().contains("does not begin"));
    }
}
