//! Every queue, size and time bound in one place, with its arithmetic.

use std::time::Duration;

/// Frames between capture and the workers. 8 frames of 1920×1080 BGR are 50 MB.
pub const CAPTURE_QUEUE_FRAMES: usize = 8;
/// Largest image file read, bytes: a 50-megapixel PNG stays below.
pub const IMAGE_FILE_BYTES_MAX: u64 = 64 << 20;
/// Largest side of an image, pixels.
pub const IMAGE_SIDE_PX_MAX: u32 = 16_384;
/// Most pixels of an image: 100 megapixels of BGR are 300 MB, against decompression bombs.
pub const IMAGE_PIXELS_MAX: u64 = 100_000_000;
/// Threads of one inference session.
pub const MODEL_THREADS_MAX: usize = 256;
/// Files of one folder or list: a million paths are about 100 MB.
pub const SOURCE_FILES_MAX: usize = 1_000_000;
/// Pause between two looks at a watched folder; a file is taken when two looks find it the same.
pub const WATCH_POLL: Duration = Duration::from_millis(200);
/// Items kept per frame; beyond that the frame is a HOLD (`locate.too_many_items`).
pub const ITEMS_PER_FRAME_MAX: usize = 256;
/// Views of one item that are looked at together.
pub const VIEWS_PER_ITEM_MAX: usize = 16;
/// Units in one uplink transaction (data model §4.2).
pub const UPLINK_UNITS_MAX: usize = 500;
/// Bytes of rows in one uplink transaction (data model §4.2), before a unit that is longer alone.
pub const UPLINK_BATCH_BYTES_MAX: usize = 1 << 20;
/// How long a committed unit may wait for others to share its transaction.
pub const UPLINK_BATCH_AGE_MAX: Duration = Duration::from_secs(1);
/// How long central may take over one batch: 1 MiB at 17 kB/s.
pub const UPLINK_BATCH_TIME_MAX: Duration = Duration::from_secs(60);
/// First and last pause of the uplink's backoff.
pub const UPLINK_BACKOFF_MIN: Duration = Duration::from_secs(1);
pub const UPLINK_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Longest time to reach the central server and log in.
pub const UPLINK_CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest time that sent data may stay unacknowledged by the peer's kernel (TCP_USER_TIMEOUT).
pub const UPLINK_UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// Keepalive of a quiet connection: a dead peer is known after 30 s + 3 × 10 s.
pub const UPLINK_KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
pub const UPLINK_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub const UPLINK_KEEPALIVE_RETRIES: u32 = 3;
/// Inspections the dashboard keeps in memory for its list: 100 × about 4 kB.
pub const DASHBOARD_RECENT_MAX: usize = 100;
/// Events an SSE client may lag behind before it is told to reload.
pub const DASHBOARD_SSE_LAG_MAX: usize = 256;
/// SSE clients at once: each holds one task and at most `DASHBOARD_SSE_QUEUE_EVENTS` rendered events.
pub const DASHBOARD_SSE_CLIENTS_MAX: usize = 32;
/// Rendered events waiting for one SSE client's socket: 16 × about 8 kB, for 32 clients 4 MB.
pub const DASHBOARD_SSE_QUEUE_EVENTS: usize = 16;
/// Requests answered at once, streams aside; more get 503. A page asks for about 30 thumbnails at a time.
pub const DASHBOARD_REQUESTS_MAX: usize = 64;
/// Longest path with query that the dashboard reads, bytes; artifact paths stay below 200.
pub const DASHBOARD_URI_BYTES_MAX: usize = 2_048;
/// Longest time a dashboard request may take, streams aside.
pub const DASHBOARD_REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// Threads that read artifact files for the dashboard, each holding at most one file (`IMAGE_FILE_BYTES_MAX`).
pub const DASHBOARD_FILE_THREADS: usize = 2;
/// A station that neither moved nor rested by design for this long makes `/healthz` answer 503: the longest
/// inspection allowed (a cold model on a slow CPU, about 10 s) three times over.
pub const HEALTH_PROGRESS_AGE_MAX: Duration = Duration::from_secs(30);
/// Inspections waiting for the ledger's writer: it commits them as one group.
pub const LEDGER_QUEUE_INSPECTIONS: usize = 64;
/// Rows or pictures that one retention step takes out: a transaction of about 2 ms, behind which a commit may wait.
pub const RETENTION_ROWS_PER_STEP: usize = 32;
/// Rows that the retention job reads at a time, about 100 bytes each.
pub const RETENTION_ROWS_PER_READ: usize = 512;
/// GPU samples kept for the central side, about 200 bytes each: one GPU once a second for a day.
pub const GPU_STATS_SPOOL_MAX: usize = 86_400;
/// Samples of the machine kept for the central side, about 150 bytes each: one a minute for a month offline.
pub const SYSTEM_STATS_SPOOL_MAX: usize = 44_640;
/// Keys of a recorded configuration; what is more stands behind one digest. The examples have some 60.
pub const CONFIG_KEYS_MAX: usize = 10_000;
/// Longest key of a recorded configuration, characters, and its longest value as JSON, bytes; longer ones are digests.
pub const CONFIG_KEY_CHARS_MAX: usize = 300;
pub const CONFIG_VALUE_BYTES_MAX: usize = 4_096;
/// Time the whole stop may take before the process exits anyway.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);
/// Learned templates searched beside one index: 2 048 × 1 280 f32 are 10 MB and about 2 ms a pass. More must be folded
/// into a generation by `loupe index build --with-delta`.
pub const DELTA_TEMPLATES_MAX: usize = 2_048;
/// Longest name of a reviewer, part or colour in a review, characters.
pub const REVIEW_WORD_CHARS_MAX: usize = 100;
/// Longest reason of a review, characters.
pub const REVIEW_REASON_CHARS_MAX: usize = 1_000;
/// Longest action that was taken, characters.
pub const ACTION_TAKEN_CHARS_MAX: usize = 200;
/// People registered at one device, retired ones among them; a list of all is some 200 kB.
pub const PEOPLE_MAX: usize = 1_000;
/// Feedback and actions listed on the dashboard.
pub const DASHBOARD_FEEDBACK_MAX: usize = 100;
/// Largest body that the dashboard reads, bytes: a review of the longest words in UTF-8 stays below.
pub const DASHBOARD_BODY_BYTES_MAX: usize = 8_192;
/// Reviews listed on the dashboard.
pub const DASHBOARD_REVIEWS_MAX: usize = 100;
/// Trays of one kit session, 4 kB each when they are counted: 4 MB.
pub const KIT_TRAYS_MAX: usize = 1_000;
/// Lines of one kit, and the quantity of one.
pub const KIT_LINES_MAX: usize = 2_000;
pub const KIT_QUANTITY_MAX: u32 = 100_000;
/// Largest correction of the stock.
pub const STOCK_DELTA_MAX: u64 = 1_000_000_000;
/// Largest catalogue file, bytes: a million parts of 60 bytes.
pub const CATALOGUE_FILE_BYTES_MAX: u64 = 64 << 20;
/// Longest field of a catalogue file, characters.
pub const CATALOGUE_FIELD_CHARS_MAX: usize = 1_000;
/// Pairs of near-duplicate templates listed.
pub const DUPLICATE_PAIRS_MAX: usize = 10_000;
/// Templates of one index: ids are stored as u32.
pub const TEMPLATES_MAX: usize = u32::MAX as usize;
/// Rows of the centre in one page, and its bytes: a page is one ledger transaction, some 20 ms beside the inspections.
pub const DOWNLINK_PAGE_ROWS_MAX: i64 = 200;
pub const DOWNLINK_PAGE_BYTES_MAX: i64 = 4 << 20;
/// Seconds between two looks at what the centre wants: 10 000 sites then ask 333 times a second.
pub const DOWNLINK_INTERVAL_S: u32 = 30;
/// Largest recipe that is published, bytes.
pub const RECIPE_BYTES_MAX: usize = 256 << 10;
/// Requests waiting for a shared session: each worker has at most one, 24 MB at 8 pictures of 512×512 f32.
pub const BATCH_QUEUE_REQUESTS: usize = 64;
/// Most pictures in one batch.
pub const BATCH_PICTURES_MAX: usize = 64;
/// First and last pause before a session whose device failed is opened again.
pub const MODEL_REBUILD_BACKOFF_MIN: Duration = Duration::from_secs(1);
pub const MODEL_REBUILD_BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Largest fit that is published, bytes: some 30 000 parts with a threshold of their own.
pub const FIT_BYTES_MAX: usize = 1 << 20;
/// A camera's scale, pixels per millimetre: a satellite's and a microscope's.
pub const PX_PER_MM_MIN: f32 = 0.001;
pub const PX_PER_MM_MAX: f32 = 100_000.0;
