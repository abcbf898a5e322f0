//! The only FAISS FFI: a safe owner of one FAISS index, over `faiss-sys`' C API.
//!
//! Invariants: lengths, finiteness and `k` are checked here before a pointer is handed over; C++ exceptions are caught
//! by the C API and come back as [`FaissError::Engine`] with FAISS's own text; nothing here panics on input.
//! FAISS trusts the files it opens, so callers check a file's digest against its manifest first.
//! A mapped file must not be shortened while it is open: the kernel would answer a read with SIGBUS. Generations are
//! immutable and replaced by rename, which keeps the mapped inode whole.
//!
//! Thread: an [`Index`] moves between threads and is used by one at a time. Searches run on the caller's thread and on
//! as many OpenMP threads as [`set_threads`] allowed it. Overload: none, the work is bounded by its arguments.
#![expect(unsafe_code, reason = "FAISS is C++ behind a C API; each block says why it is sound")]

use std::ffi::{CStr, CString, c_int, c_void};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};

use faiss_sys as sys;

/// `IO_FLAG_MMAP | IO_FLAG_READ_ONLY` of FAISS's `index_io.h`: the inverted lists of an IVF index stay in the file's
/// mapping. (The `faiss` crate's own flag is another one and maps nothing.) `IO_FLAG_MMAP_IFC` would map them too, but
/// allocates and clears as much anonymous memory first.
const IO_MAP_LISTS: c_int = 0x646f_0008 | 2;
/// `IO_FLAG_MMAP_IFC | IO_FLAG_READ_ONLY`: the codes of a flat index stay in the file's mapping.
const IO_MAP_FLAT: c_int = (1 << 9) | 2;
/// How the files of flat indexes begin (`IxF2`, `IxFI`, `IxFl`).
const FLAT_MAGIC: &[u8] = b"IxF";
/// Plain read into memory.
const IO_READ: c_int = 0;
/// Largest `k` of one search; more neighbours than this is a mistake of the caller.
pub const NEIGHBOURS_MAX: usize = 1 << 20;

/// How vectors are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Larger is nearer; the cosine of L2-normalised vectors.
    InnerProduct,
    /// Squared Euclidean distance; smaller is nearer.
    L2,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbours {
    /// `[n, k]`, best first; meaningless where the id is −1.
    pub distances: Vec<f32>,
    /// `[n, k]`, position in the order of `add`; −1 where there are fewer than `k`.
    pub ids: Vec<i64>,
}

/// Why FAISS could not do something.
#[derive(Debug, thiserror::Error)]
pub enum FaissError {
    #[error("faiss could not {action}: {message}")]
    Engine { action: &'static str, message: String },
    #[error("faiss could not {action} {}: {message}", path.display())]
    File { action: &'static str, path: PathBuf, message: String },
    #[error("{values} values are not whole vectors of dimension {dim}")]
    Shape { values: usize, dim: usize },
    #[error("vector {vector} holds {value} at position {position}: only finite numbers can be indexed or searched")]
    NotFinite { vector: usize, position: usize, value: f32 },
    #[error("a search for {k} neighbours of {queries} queries is out of bounds (k is 1 to {NEIGHBOURS_MAX})")]
    Neighbours { k: usize, queries: usize },
    #[error("{what} {value} is out of bounds for faiss")]
    OutOfBounds { what: &'static str, value: usize },
    #[error("the index has no inverted lists, so nprobe cannot be set")]
    NoLists,
    #[error("the index is not trained; train it before adding vectors")]
    NotTrained,
}

/// Owns one FAISS index. Ids are positions in the order of `add`, from 0.
pub struct Index {
    raw: NonNull<sys::FaissIndex>,
    dim: usize,
    /// Lists visited for each query; 1 and unused for an index without lists.
    nprobe: usize,
}

// SAFETY: a FAISS CPU index has no tie to the thread that made it.
unsafe impl Send for Index {}
// SAFETY: what takes `&self` (searches, sizes, writing) calls const methods of FAISS, which its documentation allows
// from several threads at once on a CPU index; what changes an index takes `&mut self`.
unsafe impl Sync for Index {}

impl Index {
    /// An empty index, `description` as FAISS's `index_factory` reads it (`Flat`, `IVF256,Flat`, …).
    ///
    /// # Errors
    /// When the dimension is 0 or beyond `i32`, or FAISS refuses the description.
    pub fn factory(dim: usize, description: &str, metric: Metric) -> Result<Self, FaissError> {
        let action = "make an index";
        let dim_c = c_int::try_from(dim).ok().filter(|&d| d > 0);
        let dim_c = dim_c.ok_or(FaissError::OutOfBounds { what: "dimension", value: dim })?;
        let description = CString::new(description)
            .map_err(|_| FaissError::Engine { action, message: "the description holds a NUL byte".to_owned() })?;
        let metric = match metric {
            Metric::InnerProduct => sys::FaissMetricType_METRIC_INNER_PRODUCT,
            Metric::L2 => sys::FaissMetricType_METRIC_L2,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` outlives the call, `description` is NUL-terminated and borrowed only during it.
        let code = unsafe { sys::faiss_index_factory(&raw mut raw, dim_c, description.as_ptr(), metric) };
        check(code, action)?;
        Self::own(raw, action)
    }

    /// Learn the lists' centroids from `vectors`, `[n, dim]`; nothing to do for a flat index.
    ///
    /// # Errors
    /// When `vectors` is not `[n, dim]` finite numbers or FAISS fails (too few of them, for instance).
    pub fn train(&mut self, vectors: &[f32]) -> Result<(), FaissError> {
        let n = self.count(vectors)?;
        // SAFETY: `self.raw` is live and exclusively borrowed; `vectors` holds n × dim floats.
        check(unsafe { sys::faiss_Index_train(self.raw.as_ptr(), n, vectors.as_ptr()) }, "train the index")
    }

    /// Append `vectors`, `[n, dim]`; their ids follow those already there.
    ///
    /// # Errors
    /// When `vectors` is not `[n, dim]` finite numbers, the index is not trained, or FAISS fails.
    pub fn add(&mut self, vectors: &[f32]) -> Result<(), FaissError> {
        let n = self.count(vectors)?;
        // SAFETY: `self.raw` is live.
        if unsafe { sys::faiss_Index_is_trained(self.raw.as_ptr()) } == 0 {
            return Err(FaissError::NotTrained);
        }
        // SAFETY: `self.raw` is live and exclusively borrowed; `vectors` holds n × dim floats.
        check(unsafe { sys::faiss_Index_add(self.raw.as_ptr(), n, vectors.as_ptr()) }, "add vectors")
    }

    /// The `k` nearest of each query, `queries` `[n, dim]`.
    ///
    /// # Errors
    /// When `queries` is not `[n, dim]` finite numbers, `k` is out of bounds, or FAISS fails.
    pub fn search(&self, queries: &[f32], k: usize) -> Result<Neighbours, FaissError> {
        self.search_probing(queries, k, self.nprobe)
    }

    /// As [`Index::search`], visiting `nprobe` lists whatever [`Index::set_nprobe`] said; as many as there are make the
    /// search exhaustive. An index without lists is always searched exhaustively.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn search_probing(&self, queries: &[f32], k: usize, nprobe: usize) -> Result<Neighbours, FaissError> {
        match self.as_ivf() {
            Some(ivf) => self.search_lists(ivf, queries, k, nprobe),
            None => search_raw(self.raw.as_ptr(), queries, self.count(queries)?, k),
        }
    }

    /// Quantise and search in two calls, because FAISS's one-call search of mapped lists starts up to 32 prefetch threads
    /// each time: on 6 372 × 1 280 in 80 lists, 7 queries at nprobe 16, one thread, 795 µs a query; 279 µs where an index opened by `IO_FLAG_MMAP_IFC` does without them.
    fn search_lists(
        &self,
        ivf: NonNull<sys::FaissIndexIVF>,
        queries: &[f32],
        k: usize,
        nprobe: usize,
    ) -> Result<Neighbours, FaissError> {
        let n = self.count(queries)?;
        // SAFETY: `ivf` is this live index.
        let lists = unsafe { sys::faiss_IndexIVF_nlist(ivf.as_ptr()) };
        let nprobe = nprobe.clamp(1, lists.max(1));
        // SAFETY: as above; the quantiser lives as long as the index and is only read.
        let quantiser = unsafe { sys::faiss_IndexIVF_quantizer(ivf.as_ptr()) };
        if quantiser.is_null() {
            return Err(FaissError::NotTrained);
        }
        let nearest_lists = search_raw(quantiser, queries, n, nprobe)?;
        let (mut found, k) = empty_answer(n, k)?;
        if found.ids.is_empty() {
            return Ok(found);
        }
        // SAFETY: `Index` is not `Sync`, so no other thread is in this index while its number of lists is set; lists and
        // their distances hold n × nprobe cells, both outputs n × k, `queries` n × dim.
        let code = unsafe {
            sys::faiss_IndexIVF_set_nprobe(ivf.as_ptr(), nprobe);
            sys::faiss_IndexIVF_search_preassigned(
                ivf.as_ptr(),
                n,
                queries.as_ptr(),
                k,
                nearest_lists.ids.as_ptr(),
                nearest_lists.distances.as_ptr(),
                found.distances.as_mut_ptr(),
                found.ids.as_mut_ptr(),
                0,
            )
        };
        check(code, "search")?;
        Ok(found)
    }

    /// Write the index to `path`; the caller syncs and renames it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), FaissError> {
        let name = file_name(path, "write")?;
        // SAFETY: `self.raw` is live; `name` is NUL-terminated and borrowed only during the call.
        let code = unsafe { sys::faiss_write_index_fname(self.raw.as_ptr(), name.as_ptr()) };
        check_file(code, "write", path)
    }

    /// Read the index at `path` into memory. Check its digest first.
    ///
    /// # Errors
    /// When the file cannot be read or is no index.
    pub fn read(path: &Path) -> Result<Self, FaissError> {
        Self::load(path, IO_READ, "read")
    }

    /// Open the index at `path` memory-mapped and read-only: the vectors of its inverted lists, or of a flat index, stay
    /// in the file; list sizes and centroids are read. Check its digest first: a file cut short is not noticed here.
    ///
    /// # Errors
    /// When the file cannot be opened or is no index.
    pub fn map(path: &Path) -> Result<Self, FaissError> {
        let action = "map";
        let mut magic = [0_u8; FLAT_MAGIC.len()];
        std::fs::File::open(path)
            .and_then(|mut file| file.read_exact(&mut magic))
            .map_err(|error| FaissError::File { action, path: path.to_owned(), message: error.to_string() })?;
        Self::load(path, if magic == FLAT_MAGIC { IO_MAP_FLAT } else { IO_MAP_LISTS }, action)
    }

    /// Vectors in the index.
    #[must_use]
    pub fn len(&self) -> usize {
        // SAFETY: `self.raw` is live.
        usize::try_from(unsafe { sys::faiss_Index_ntotal(self.raw.as_ptr()) }).unwrap_or(0)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values of one vector.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How vectors are compared; `None` for a metric that Loupe does not use.
    #[must_use]
    pub fn metric(&self) -> Option<Metric> {
        // SAFETY: `self.raw` is live.
        match unsafe { sys::faiss_Index_metric_type(self.raw.as_ptr()) } {
            sys::FaissMetricType_METRIC_INNER_PRODUCT => Some(Metric::InnerProduct),
            sys::FaissMetricType_METRIC_L2 => Some(Metric::L2),
            _ => None,
        }
    }

    /// Inverted lists; `None` for an index without them.
    #[must_use]
    pub fn list_count(&self) -> Option<usize> {
        // SAFETY: `as_ivf` gives this live index.
        self.as_ivf().map(|ivf| unsafe { sys::faiss_IndexIVF_nlist(ivf.as_ptr()) })
    }

    /// Lists visited for each query, cut to the number of lists; 1 until it is set.
    ///
    /// # Errors
    /// When the index has no inverted lists or `nprobe` is 0.
    pub fn set_nprobe(&mut self, nprobe: usize) -> Result<(), FaissError> {
        let lists = self.list_count().ok_or(FaissError::NoLists)?;
        if nprobe == 0 {
            return Err(FaissError::OutOfBounds { what: "nprobe", value: nprobe });
        }
        self.nprobe = nprobe.min(lists);
        Ok(())
    }

    /// This index as an IVF, when it is one.
    fn as_ivf(&self) -> Option<NonNull<sys::FaissIndexIVF>> {
        // SAFETY: `self.raw` is live; the cast only asks for the dynamic type and gives null for another.
        NonNull::new(unsafe { sys::faiss_IndexIVF_cast(self.raw.as_ptr()) })
    }

    /// A copy of the vectors in the order they were added, `[len, dim]`. Reads every inverted list once.
    ///
    /// # Errors
    /// When FAISS cannot give them back.
    pub fn vectors(&self) -> Result<Vec<f32>, FaissError> {
        let mut copy = vec![0.0_f32; self.len() * self.dim];
        if copy.is_empty() {
            return Ok(copy);
        }
        let count = i64::try_from(self.len()).unwrap_or(i64::MAX);
        // SAFETY: `self.raw` is live; FAISS writes `len × dim` floats, which is the length of `copy`.
        let code = unsafe { sys::faiss_Index_reconstruct_n(self.raw.as_ptr(), 0, count, copy.as_mut_ptr()) };
        check(code, "read the vectors")?;
        Ok(copy)
    }

    /// A copy of a flat index's vectors, `[len, dim]`; `None` for another kind of index.
    #[must_use]
    pub fn flat_vectors(&self) -> Option<Vec<f32>> {
        // SAFETY: `self.raw` is live; the cast only asks for the dynamic type and gives null for another.
        let flat = unsafe { sys::faiss_IndexFlat_cast(self.raw.as_ptr()) };
        if flat.is_null() {
            return None;
        }
        let (mut values, mut value_count) = (ptr::null_mut::<f32>(), 0_usize);
        // SAFETY: `flat` is a live flat index; both outputs outlive the call.
        unsafe { sys::faiss_IndexFlat_xb(flat, &raw mut values, &raw mut value_count) };
        if value_count != self.len() * self.dim || (values.is_null() && value_count != 0) {
            return None;
        }
        let mut copy = vec![0.0_f32; value_count];
        if value_count > 0 {
            // SAFETY: FAISS owns `value_count` floats at `values` while `self` lives; `copy` has as many and is new.
            // Bytes are copied because FAISS keeps them as octets and promises no alignment.
            unsafe { ptr::copy_nonoverlapping(values.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), value_count * 4) };
        }
        Some(copy)
    }

    fn load(path: &Path, io_flags: c_int, action: &'static str) -> Result<Self, FaissError> {
        let name = file_name(path, action)?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` outlives the call; `name` is NUL-terminated and borrowed only during it.
        let code = unsafe { sys::faiss_read_index_fname(name.as_ptr(), io_flags, &raw mut raw) };
        check_file(code, action, path)?;
        Self::own(raw, action)
    }

    /// Take ownership of what FAISS made.
    fn own(raw: *mut sys::FaissIndex, action: &'static str) -> Result<Self, FaissError> {
        let raw = NonNull::new(raw)
            .ok_or_else(|| FaissError::Engine { action, message: "it returned no index".to_owned() })?;
        // SAFETY: FAISS just made `raw` and said so.
        let dim = usize::try_from(unsafe { sys::faiss_Index_d(raw.as_ptr()) }).unwrap_or(0);
        let index = Self { raw, dim, nprobe: 1 };
        if dim == 0 {
            return Err(FaissError::OutOfBounds { what: "dimension", value: dim });
        }
        Ok(index)
    }

    /// Number of vectors in `values`, which must be `[n, dim]` finite numbers.
    fn count(&self, values: &[f32]) -> Result<i64, FaissError> {
        let dim = self.dim;
        if !values.len().is_multiple_of(dim) {
            return Err(FaissError::Shape { values: values.len(), dim });
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(FaissError::NotFinite { vector: at / dim, position: at % dim, value: values[at] });
        }
        let n = values.len() / dim;
        i64::try_from(n).map_err(|_| FaissError::OutOfBounds { what: "number of vectors", value: n })
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // SAFETY: `self.raw` came from FAISS, is owned by this value alone and is not used after this.
        unsafe { sys::faiss_Index_free(self.raw.as_ptr()) };
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("dim", &self.dim).field("len", &self.len()).finish_non_exhaustive()
    }
}

// libgomp, which FAISS is linked with.
unsafe extern "C" {
    fn omp_set_num_threads(threads: c_int);
}

/// Threads of the calling thread's FAISS calls, at least 1. OpenBLAS (behind FAISS's larger searches) keeps one pool
/// for the whole process; where it is the BLAS in use, it is set to one thread, because FAISS already splits its work.
pub fn set_threads(threads: usize) {
    let threads = c_int::try_from(threads.clamp(1, 1 << 10)).unwrap_or(1);
    // SAFETY: a libgomp function without preconditions; it sets a variable of the calling thread.
    unsafe { omp_set_num_threads(threads) };
    // SAFETY: the name is NUL-terminated; looking a symbol up has no other precondition.
    let symbol: *mut c_void = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"openblas_set_num_threads".as_ptr()) };
    if !symbol.is_null() {
        // SAFETY: OpenBLAS declares `void openblas_set_num_threads(int)` under exactly this name.
        let set: extern "C" fn(c_int) = unsafe { std::mem::transmute(symbol) };
        set(1);
    }
}

/// Room for the answers to `n` queries, and `k` as FAISS takes it.
fn empty_answer(n: i64, k: usize) -> Result<(Neighbours, i64), FaissError> {
    let queries = usize::try_from(n).unwrap_or(usize::MAX);
    let out_of_bounds = || FaissError::Neighbours { k, queries };
    let k_c = i64::try_from(k).ok().filter(|_| (1..=NEIGHBOURS_MAX).contains(&k)).ok_or_else(out_of_bounds)?;
    let cells = queries.checked_mul(k).ok_or_else(out_of_bounds)?;
    Ok((Neighbours { distances: vec![0.0; cells], ids: vec![-1; cells] }, k_c))
}

/// Search `index`, which is live; `queries` was checked to be `n` of its vectors.
fn search_raw(index: *const sys::FaissIndex, queries: &[f32], n: i64, k: usize) -> Result<Neighbours, FaissError> {
    let (mut found, k) = empty_answer(n, k)?;
    if found.ids.is_empty() {
        return Ok(found);
    }
    let (distances, ids) = (found.distances.as_mut_ptr(), found.ids.as_mut_ptr());
    // SAFETY: `index` is live; `queries` holds n × dim floats; both outputs hold n × k cells.
    check(unsafe { sys::faiss_Index_search(index, n, queries.as_ptr(), k, distances, ids) }, "search")?;
    Ok(found)
}

fn file_name(path: &Path, action: &'static str) -> Result<CString, FaissError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| FaissError::File {
        action,
        path: path.to_owned(),
        message: "the path holds a NUL byte".to_owned(),
    })
}

fn check(code: c_int, action: &'static str) -> Result<(), FaissError> {
    if code == 0 { Ok(()) } else { Err(FaissError::Engine { action, message: last_error() }) }
}

fn check_file(code: c_int, action: &'static str, path: &Path) -> Result<(), FaissError> {
    if code == 0 { Ok(()) } else { Err(FaissError::File { action, path: path.to_owned(), message: last_error() }) }
}

/// FAISS's text of this thread's last failure, on one line.
fn last_error() -> String {
    // SAFETY: FAISS returns null or a NUL-terminated text that stays until its next call on this thread.
    let text = unsafe {
        let text = sys::faiss_get_last_error();
        if text.is_null() { None } else { Some(CStr::from_ptr(text).to_string_lossy().into_owned()) }
    };
    text.map_or_else(|| "no reason given".to_owned(), |text| text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::{FaissError, Index, Metric};

    fn flat(vectors: &[f32]) -> Index {
        let mut index = Index::factory(2, "Flat", Metric::InnerProduct).unwrap();
        index.add(vectors).unwrap();
        index
    }

    #[test]
    fn the_nearest_come_first_and_missing_neighbours_are_minus_one() {
        let found = flat(&[1.0, 0.0, 0.0, 1.0]).search(&[0.1, 0.9], 3).unwrap();
        assert_eq!(found.ids, [1, 0, -1]);
        assert!((found.distances[0] - 0.9).abs() < 1e-6);
    }

    #[test]
    fn nan_infinity_and_ragged_vectors_are_refused() {
        let mut index = flat(&[1.0, 0.0]);
        assert!(matches!(index.add(&[0.0, 0.0, 0.0]), Err(FaissError::Shape { values: 3, dim: 2 })));
        assert!(matches!(index.add(&[0.0, f32::INFINITY]), Err(FaissError::NotFinite { position: 1, .. })));
        let error = index.search(&[0.0, 1.0, f32::NAN, 1.0], 1).unwrap_err();
        assert!(matches!(error, FaissError::NotFinite { vector: 1, position: 0, .. }), "{error}");
        assert!(matches!(index.search(&[0.0, 1.0], 0), Err(FaissError::Neighbours { .. })));
        assert!(matches!(index.search(&[0.0, 1.0], usize::MAX), Err(FaissError::Neighbours { .. })));
        assert_eq!(index.len(), 1);
    }

    #[test]
    fn a_bad_description_dimension_or_untrained_index_is_an_error() {
        let error = Index::factory(8, "NoSuchIndex", Metric::L2).unwrap_err().to_string();
        assert!(error.starts_with("faiss could not make an index: ") && error.contains("NoSuchIndex"), "{error}");
        assert!(matches!(Index::factory(0, "Flat", Metric::L2), Err(FaissError::OutOfBounds { .. })));
        let mut index = Index::factory(2, "IVF4,Flat", Metric::L2).unwrap();
        assert!(matches!(index.add(&[0.0, 1.0]), Err(FaissError::NotTrained)));
        assert!(index.train(&[0.0, 1.0]).is_err(), "fewer vectors than lists");
    }

    #[test]
    fn nprobe_needs_inverted_lists() {
        assert!(matches!(flat(&[1.0, 0.0]).set_nprobe(1), Err(FaissError::NoLists)));
        let mut index = Index::factory(2, "IVF4,Flat", Metric::L2).unwrap();
        assert_eq!(index.list_count(), Some(4));
        index.set_nprobe(99).unwrap();
        assert!(matches!(index.set_nprobe(0), Err(FaissError::OutOfBounds { .. })));
    }

    #[test]
    fn a_missing_or_garbage_file_is_an_error_naming_it() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing.faiss");
        assert!(Index::read(&missing).unwrap_err().to_string().contains("missing.faiss"));
        let garbage = dir.path().join("garbage.faiss");
        for bytes in [&b""[..], b"IxFI", b"not an index at all, just some text that is long enough"] {
            std::fs::write(&garbage, bytes).unwrap();
            assert!(Index::read(&garbage).is_err());
            assert!(Index::map(&garbage).is_err());
        }
    }

    #[test]
    fn written_vectors_come_back_read_and_mapped() {
        super::set_threads(1);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.faiss");
        let mut rng = fastrand::Rng::with_seed(7);
        let vectors: Vec<f32> = (0..400 * 4).map(|_| rng.f32() - 0.5).collect();
        let mut index = Index::factory(4, "IVF4,Flat", Metric::InnerProduct).unwrap();
        index.train(&vectors).unwrap();
        index.add(&vectors).unwrap();
        index.write(&path).unwrap();
        index.set_nprobe(4).unwrap();
        let wanted = index.search(&vectors[..8], 3).unwrap();
        for open in [Index::read, Index::map] {
            let mut opened = open(&path).unwrap();
            opened.set_nprobe(4).unwrap();
            assert_eq!((opened.len(), opened.dim(), opened.metric()), (400, 4, Some(Metric::InnerProduct)));
            assert_eq!(opened.search(&vectors[..8], 3).unwrap(), wanted);
            opened.set_nprobe(1).unwrap();
            assert_ne!(
                opened.search(&vectors[..8], 300).unwrap(),
                opened.search_probing(&vectors[..8], 300, 4).unwrap()
            );
            assert_eq!(opened.search_probing(&vectors[..8], 3, usize::MAX).unwrap(), wanted);
        }
        assert_eq!(index.flat_vectors(), None);
        let whole = flat(&vectors[..2 * 2]);
        whole.write(&path).unwrap();
        let mapped = Index::map(&path).unwrap();
        assert_eq!(mapped.search(&vectors[..2], 2).unwrap(), whole.search(&vectors[..2], 2).unwrap());
        assert_eq!(flat(&[1.0, 2.0]).flat_vectors(), Some(vec![1.0, 2.0]));
    }
}
