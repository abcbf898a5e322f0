/* A disk that fails, fills, lies or loses its power, for LD_PRELOAD: what a test cannot do to a real one.
 *
 * Only files below FAULTFS_ROOT are touched. Three uses, by environment:
 *
 *   FAULTFS_FAIL=CLASS,ERRNO,FROM,COUNT   calls FROM to FROM+COUNT-1 of CLASS (write, fsync, any) fail with ERRNO
 *                                         (ENOSPC, EIO, EROFS); COUNT 0: for ever. The first write that meets ENOSPC is
 *                                         cut short instead, as a real one. FAULTFS_MATCH: only paths with this in them.
 *                                         FAULTFS_SWITCH: only while this file exists.
 *   FAULTFS_CUT=N                         a power cut at the Nth changing call: of what was not yet fsynced a random part
 *                                         (FAULTFS_SEED) is lost or torn, then the process gets SIGKILL. N 0: never, but
 *                                         the number of calls is written to FAULTFS_LOG at exit.
 *   FAULTFS_LIE=1                         with FAULTFS_CUT: fsync says yes and does nothing.
 *   FAULTFS_CLOCK=S                       the wall clock is S seconds off.
 *
 * The model of a power cut, harsher than ext4 in its default mode: the bytes of each 4 KiB page written since the file's
 * last fsync are kept, lost, or torn at a 512-byte sector; a file's growth is kept, lost or kept as zeros; names made,
 * moved or removed since their directory's last fsync persist up to a random point in the order they were done, and not
 * beyond. Not modelled: versions of a page between two writes, bit rot, writes that reach the wrong place. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define SECTOR 512

enum call { WRITE, SYNC, NAME };

struct page {
	off_t number;
	unsigned char old[PAGE];
};

struct file {
	dev_t dev;
	ino_t ino;
	int fd; /* our own; never closed, since closing any would drop the process's POSIX locks */
	int dirty;
	off_t synced_size;
	struct page *pages;
	size_t count, room;
	struct file *next;
};

enum kind { CREATED, RENAMED, REMOVED, MADE_DIR };

struct name_op {
	enum kind kind;
	char path[PATH_MAX], from[PATH_MAX], backup[PATH_MAX];
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int is_ready, journals, lies;
static char root[PATH_MAX], scratch[PATH_MAX], match[256], switch_path[PATH_MAX], log_path[PATH_MAX];
static long cut_at, op_count, fail_from, fail_count, fail_seen;
static int fail_errno, fail_class = -1, was_cut_short;
static long clock_offset_s;
static uint64_t rng_state;
static struct file *files;
static struct name_op *names;
static size_t name_count, name_room, backup_count;

static uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

static void say(const char *format, ...)
{
	char line[PATH_MAX + 200];
	va_list args;
	if (!log_path[0])
		return;
	va_start(args, format);
	int length = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	int fd = (int)syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (fd >= 0) {
		if (syscall(SYS_write, fd, line, (size_t)length) < 0)
			errno = 0;
		syscall(SYS_close, fd);
	}
}

static void copy(char *to, size_t size, const char *variable)
{
	const char *text = getenv(variable);
	if (text)
		snprintf(to, size, "%s", text);
}

__attribute__((constructor)) static void start(void)
{
	const char *text;
	char class[16], error[16];
	copy(root, sizeof root, "FAULTFS_ROOT");
	copy(scratch, sizeof scratch, "FAULTFS_SCRATCH");
	copy(match, sizeof match, "FAULTFS_MATCH");
	copy(switch_path, sizeof switch_path, "FAULTFS_SWITCH");
	copy(log_path, sizeof log_path, "FAULTFS_LOG");
	if ((text = getenv("FAULTFS_CLOCK")))
		clock_offset_s = atol(text);
	if ((text = getenv("FAULTFS_CUT"))) {
		journals = 1;
		cut_at = atol(text);
	}
	lies = getenv("FAULTFS_LIE") != NULL;
	rng_state = (text = getenv("FAULTFS_SEED")) ? strtoull(text, NULL, 10) * 2654435769u + 88172645463325252u : 1;
	for (int i = 0; i < 8; i++)
		rng();
	if ((text = getenv("FAULTFS_FAIL")) &&
	    sscanf(text, "%15[^,],%15[^,],%ld,%ld", class, error, &fail_from, &fail_count) == 4) {
		fail_class = !strcmp(class, "write") ? WRITE : !strcmp(class, "fsync") ? SYNC : 3;
		fail_errno = !strcmp(error, "ENOSPC") ? ENOSPC : !strcmp(error, "EROFS") ? EROFS : EIO;
	}
	is_ready = root[0] != 0;
}

__attribute__((destructor)) static void stop(void)
{
	if (journals)
		say("ops %ld\n", op_count);
}

static int is_ours(const char *path)
{
	size_t length = strlen(root);
	return is_ready && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int path_of(int fd, char *path)
{
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
	if (length < 0)
		return 0;
	path[length] = 0;
	return is_ours(path) && !strstr(path, " (deleted)") && !strstr(path, "-shm");
}

/* An absolute path, without resolving the last name. */
static void absolute(int dirfd, const char *path, char *out)
{
	char base[PATH_MAX] = "";
	if (path[0] == '/') {
		snprintf(out, PATH_MAX, "%s", path);
		return;
	}
	if (dirfd == AT_FDCWD) {
		if (syscall(SYS_getcwd, base, sizeof base) < 0)
			base[0] = 0;
	} else {
		path_of(dirfd, base);
	}
	while (path[0] == '.' && path[1] == '/')
		path += 2;
	snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
}

static const char *parent_of(const char *path, char *out)
{
	snprintf(out, PATH_MAX, "%s", path);
	char *slash = strrchr(out, '/');
	if (slash)
		*slash = 0;
	return out;
}

/* Whether this call must fail; errno is then set. */
static int fails(int call, const char *path)
{
	if (fail_class < 0 || (fail_class != 3 && fail_class != call) || (match[0] && !strstr(path, match)))
		return 0;
	if (switch_path[0] && syscall(SYS_faccessat, AT_FDCWD, switch_path, F_OK, 0) != 0)
		return 0;
	pthread_mutex_lock(&mutex);
	long seen = ++fail_seen;
	pthread_mutex_unlock(&mutex);
	if (seen < fail_from || (fail_count && seen >= fail_from + fail_count))
		return 0;
	if (seen == fail_from)
		say("first failure: call %d of %s\n", call, path);
	errno = fail_errno;
	return 1;
}

static struct file *track(int fd)
{
	struct stat stat;
	char link[64];
	if (fstat(fd, &stat) || !S_ISREG(stat.st_mode))
		return NULL;
	for (struct file *file = files; file; file = file->next)
		if (file->dev == stat.st_dev && file->ino == stat.st_ino)
			return file;
	struct file *file = calloc(1, sizeof *file);
	if (!file)
		abort();
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	file->fd = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDWR | O_CLOEXEC, 0);
	if (file->fd < 0) {
		free(file);
		return NULL;
	}
	file->dev = stat.st_dev;
	file->ino = stat.st_ino;
	file->synced_size = stat.st_size;
	file->next = files;
	files = file;
	return file;
}

/* Remember what pages [offset, offset + length) held at the last fsync. */
static void remember(struct file *file, off_t offset, off_t length)
{
	file->dirty = 1;
	for (off_t number = offset / PAGE; number * PAGE < offset + length; number++) {
		size_t at = 0;
		while (at < file->count && file->pages[at].number != number)
			at++;
		if (at < file->count)
			continue;
		if (file->count == file->room) {
			file->room = file->room ? file->room * 2 : 16;
			file->pages = realloc(file->pages, file->room * sizeof *file->pages);
			if (!file->pages)
				abort();
		}
		struct page *page = &file->pages[file->count++];
		memset(page, 0, sizeof *page);
		page->number = number;
		if (number * PAGE < file->synced_size &&
		    syscall(SYS_pread64, file->fd, page->old, PAGE, number * PAGE) < 0)
			memset(page->old, 0, PAGE);
	}
}

static void lose_bytes(struct file *file)
{
	struct stat stat;
	if (!file->dirty || fstat(file->fd, &stat))
		return;
	int mode = (int)(rng() % 4); /* 0 all kept, 1 all lost, else page by page */
	off_t end = stat.st_size;
	long lost = 0, torn = 0;
	/* A truncation happened or did not; pages beyond it come back all together. */
	int regrows = end < file->synced_size && (mode == 1 || rng() % 2);
	for (size_t at = 0; at < file->count && mode; at++) {
		struct page *page = &file->pages[at];
		off_t start = page->number * PAGE;
		int fate = mode == 1 ? 1 : (int)(rng() % 3);
		if (start + PAGE > end && end < file->synced_size)
			fate = regrows;
		size_t from = fate == 2 ? (1 + rng() % (PAGE / SECTOR - 1)) * SECTOR : 0;
		if (fate == 0)
			continue;
		off_t limit = file->synced_size > end ? file->synced_size : end;
		off_t length = limit - start < PAGE ? limit - start : PAGE;
		if (length > (off_t)from &&
		    syscall(SYS_pwrite64, file->fd, page->old + from, (size_t)length - from, start + (off_t)from) < 0)
			say("cannot restore a page: %d\n", errno);
		fate == 2 ? torn++ : lost++;
	}
	if (mode && end > file->synced_size) {
		off_t size = mode == 1 || rng() % 2 ? file->synced_size : end;
		if (mode != 1 && rng() % 3 == 0)
			size = file->synced_size + (off_t)(rng() % (uint64_t)(end - file->synced_size));
		if (syscall(SYS_ftruncate, file->fd, size))
			say("cannot truncate: %d\n", errno);
	}
	say("inode %lu: %zu pages unsynced, %ld lost, %ld torn, size %ld of %ld synced\n", (unsigned long)file->ino,
	    file->count, lost, torn, (long)end, (long)file->synced_size);
}

static void undo(struct name_op *op)
{
	char aside[PATH_MAX];
	say("undone: %d %s\n", op->kind, op->path);
	switch (op->kind) {
	case CREATED:
		syscall(SYS_unlinkat, AT_FDCWD, op->path, 0);
		break;
	case MADE_DIR:
		snprintf(aside, sizeof aside, "%.3000s/lost-%d-%zu", scratch, (int)getpid(), backup_count++);
		syscall(SYS_renameat2, AT_FDCWD, op->path, AT_FDCWD, aside, 0);
		break;
	case RENAMED:
		syscall(SYS_renameat2, AT_FDCWD, op->path, AT_FDCWD, op->from, 0);
		if (op->backup[0])
			syscall(SYS_renameat2, AT_FDCWD, op->backup, AT_FDCWD, op->path, 0);
		break;
	case REMOVED:
		if (op->backup[0])
			syscall(SYS_renameat2, AT_FDCWD, op->backup, AT_FDCWD, op->path, 0);
		break;
	}
}

/* The power goes: never returns. */
static void cut_power(void)
{
	say("cut at call %ld, %zu names not synced\n", op_count, name_count);
	for (struct file *file = files; file; file = file->next)
		lose_bytes(file);
	size_t kept = name_count ? rng() % (name_count + 1) : 0;
	while (name_count > kept)
		undo(&names[--name_count]);
	kill(getpid(), SIGKILL);
	for (;;)
		pause();
}

/* Count a changing call, under the mutex. */
static void count(void)
{
	op_count++;
	if (cut_at && op_count == cut_at)
		cut_power();
}

static void note_name(enum kind kind, const char *path, const char *from, const char *backup)
{
	if (name_count == name_room) {
		name_room = name_room ? name_room * 2 : 64;
		names = realloc(names, name_room * sizeof *names);
		if (!names)
			abort();
	}
	struct name_op *op = &names[name_count++];
	op->kind = kind;
	snprintf(op->path, sizeof op->path, "%s", path);
	snprintf(op->from, sizeof op->from, "%s", from);
	snprintf(op->backup, sizeof op->backup, "%s", backup);
}

/* A second name for a file about to lose its own. */
static void keep(const char *path, char *backup)
{
	backup[0] = 0;
	char target[PATH_MAX];
	snprintf(target, sizeof target, "%.3000s/kept-%d-%zu", scratch, (int)getpid(), backup_count++);
	if (!syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, target, 0))
		snprintf(backup, PATH_MAX, "%s", target);
}

static int open_any(int dirfd, const char *name, int flags, mode_t mode)
{
	char path[PATH_MAX];
	if (!is_ready)
		return (int)syscall(SYS_openat, dirfd, name, flags, mode);
	absolute(dirfd, name, path);
	if (!is_ours(path) || strstr(path, "-shm") || !(flags & (O_CREAT | O_TRUNC)))
		return (int)syscall(SYS_openat, dirfd, name, flags, mode);
	int exists = syscall(SYS_faccessat, AT_FDCWD, path, F_OK, 0) == 0;
	errno = 0;
	if (!exists && fails(WRITE, path))
		return -1;
	if (!journals)
		return (int)syscall(SYS_openat, dirfd, name, flags, mode);
	pthread_mutex_lock(&mutex);
	if (!exists || flags & O_TRUNC)
		count();
	if (exists && flags & O_TRUNC) {
		int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
		struct file *file = fd < 0 ? NULL : track(fd);
		if (file)
			remember(file, 0, file->synced_size);
	}
	int fd = (int)syscall(SYS_openat, dirfd, name, flags, mode);
	if (fd >= 0 && !exists)
		note_name(CREATED, path, "", "");
	pthread_mutex_unlock(&mutex);
	return fd;
}

#define MODE_OF(flags)                             \
	mode_t mode = 0;                           \
	if ((flags) & (O_CREAT | O_TMPFILE)) {     \
		va_list args;                      \
		va_start(args, flags);             \
		mode = (mode_t)va_arg(args, int);  \
		va_end(args);                      \
	}

int open(const char *path, int flags, ...)
{
	MODE_OF(flags)
	return open_any(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	MODE_OF(flags)
	return open_any(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

int openat(int dirfd, const char *path, int flags, ...)
{
	MODE_OF(flags)
	return open_any(dirfd, path, flags, mode);
}

int openat64(int dirfd, const char *path, int flags, ...)
{
	MODE_OF(flags)
	return open_any(dirfd, path, flags | O_LARGEFILE, mode);
}

/* Before bytes [offset, offset + length) of fd change; offset -1: where fd stands. 0: let it happen. */
static int before_write(int fd, off_t *offset, size_t *length)
{
	char path[PATH_MAX];
	if (!is_ready || !path_of(fd, path))
		return 0;
	if (fails(WRITE, path)) {
		if (errno != ENOSPC || was_cut_short || *length < 2)
			return -1;
		was_cut_short = 1;
		*length /= 2;
	}
	if (!journals)
		return 0;
	pthread_mutex_lock(&mutex);
	count();
	struct file *file = track(fd);
	if (file) {
		off_t at = *offset;
		if (at < 0) {
			struct stat stat;
			int flags = (int)syscall(SYS_fcntl, fd, F_GETFL);
			at = flags & O_APPEND && !fstat(fd, &stat) ? stat.st_size : syscall(SYS_lseek, fd, 0, SEEK_CUR);
		}
		remember(file, at, (off_t)*length);
	}
	return 1;
}

static void after_write(int state)
{
	if (state > 0)
		pthread_mutex_unlock(&mutex);
}

ssize_t write(int fd, const void *bytes, size_t length)
{
	off_t offset = -1;
	int state = before_write(fd, &offset, &length);
	if (state < 0)
		return -1;
	ssize_t written = syscall(SYS_write, fd, bytes, length);
	after_write(state);
	return written;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
	int state = before_write(fd, &offset, &length);
	if (state < 0)
		return -1;
	ssize_t written = syscall(SYS_pwrite64, fd, bytes, length, offset);
	after_write(state);
	return written;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset)
{
	return pwrite(fd, bytes, length, offset);
}

static ssize_t vector_write(int fd, const struct iovec *vector, int count_of, off_t offset)
{
	size_t length = 0;
	for (int i = 0; i < count_of; i++)
		length += vector[i].iov_len;
	size_t whole = length;
	off_t at = offset;
	int state = before_write(fd, &at, &length);
	if (state < 0)
		return -1;
	ssize_t written;
	if (length < whole && count_of > 0) /* cut short: the first piece alone */
		count_of = 1;
	if (offset < 0)
		written = syscall(SYS_writev, fd, vector, count_of);
	else
		written = syscall(SYS_pwritev, fd, vector, count_of, offset, 0);
	after_write(state);
	return written;
}

ssize_t writev(int fd, const struct iovec *vector, int count_of)
{
	return vector_write(fd, vector, count_of, -1);
}

ssize_t pwritev(int fd, const struct iovec *vector, int count_of, off_t offset)
{
	return vector_write(fd, vector, count_of, offset);
}

ssize_t pwritev64(int fd, const struct iovec *vector, int count_of, off64_t offset)
{
	return vector_write(fd, vector, count_of, offset);
}

int ftruncate(int fd, off_t size)
{
	char path[PATH_MAX];
	if (!is_ready || !path_of(fd, path))
		return (int)syscall(SYS_ftruncate, fd, size);
	if (fails(WRITE, path))
		return -1;
	if (!journals)
		return (int)syscall(SYS_ftruncate, fd, size);
	pthread_mutex_lock(&mutex);
	count();
	struct file *file = track(fd);
	struct stat stat;
	if (file && !fstat(fd, &stat)) {
		file->dirty = 1;
		if (size < stat.st_size)
			remember(file, size, stat.st_size - size);
	}
	int outcome = (int)syscall(SYS_ftruncate, fd, size);
	pthread_mutex_unlock(&mutex);
	return outcome;
}

int ftruncate64(int fd, off64_t size)
{
	return ftruncate(fd, size);
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
	char path[PATH_MAX];
	if (is_ready && path_of(fd, path) && fails(WRITE, path))
		return errno;
	return syscall(SYS_fallocate, fd, 0, offset, length) ? errno : 0;
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
	return posix_fallocate(fd, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
	char path[PATH_MAX];
	if (is_ready && path_of(fd, path) && fails(WRITE, path))
		return -1;
	return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
	return fallocate(fd, mode, offset, length);
}

static int sync_any(int fd, long call)
{
	char path[PATH_MAX], parent[PATH_MAX];
	struct stat stat;
	if (!is_ready || !path_of(fd, path))
		return (int)syscall(call, fd);
	if (fails(SYNC, path))
		return -1;
	if (!journals)
		return (int)syscall(call, fd);
	pthread_mutex_lock(&mutex);
	count();
	if (!lies && !fstat(fd, &stat)) {
		if (S_ISDIR(stat.st_mode)) {
			size_t kept = 0;
			for (size_t at = 0; at < name_count; at++)
				if (strcmp(parent_of(names[at].path, parent), path))
					names[kept++] = names[at];
			name_count = kept;
		} else {
			struct file *file = track(fd);
			if (file) {
				file->count = 0;
				file->dirty = 0;
				file->synced_size = stat.st_size;
			}
		}
	}
	pthread_mutex_unlock(&mutex);
	return 0; /* the real disk need not hurry */
}

int fsync(int fd)
{
	return sync_any(fd, SYS_fsync);
}

int fdatasync(int fd)
{
	return sync_any(fd, SYS_fdatasync);
}

int rename(const char *old, const char *new)
{
	char from[PATH_MAX], to[PATH_MAX], backup[PATH_MAX];
	if (!is_ready)
		return (int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
	absolute(AT_FDCWD, old, from);
	absolute(AT_FDCWD, new, to);
	if (!is_ours(to))
		return (int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
	if (fails(NAME, to))
		return -1;
	if (!journals)
		return (int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
	pthread_mutex_lock(&mutex);
	count();
	keep(to, backup);
	int outcome = (int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
	if (!outcome)
		note_name(RENAMED, to, from, backup);
	pthread_mutex_unlock(&mutex);
	return outcome;
}

int unlink(const char *name)
{
	char path[PATH_MAX], backup[PATH_MAX];
	if (!is_ready)
		return (int)syscall(SYS_unlinkat, AT_FDCWD, name, 0);
	absolute(AT_FDCWD, name, path);
	if (!is_ours(path) || strstr(path, "-shm"))
		return (int)syscall(SYS_unlinkat, AT_FDCWD, name, 0);
	if (fails(NAME, path))
		return -1;
	if (!journals)
		return (int)syscall(SYS_unlinkat, AT_FDCWD, name, 0);
	pthread_mutex_lock(&mutex);
	count();
	keep(path, backup);
	int outcome = (int)syscall(SYS_unlinkat, AT_FDCWD, name, 0);
	if (!outcome)
		note_name(REMOVED, path, "", backup);
	pthread_mutex_unlock(&mutex);
	return outcome;
}

int mkdir(const char *name, mode_t mode)
{
	char path[PATH_MAX];
	if (!is_ready)
		return (int)syscall(SYS_mkdirat, AT_FDCWD, name, mode);
	absolute(AT_FDCWD, name, path);
	if (!is_ours(path))
		return (int)syscall(SYS_mkdirat, AT_FDCWD, name, mode);
	if (fails(NAME, path))
		return -1;
	if (!journals)
		return (int)syscall(SYS_mkdirat, AT_FDCWD, name, mode);
	pthread_mutex_lock(&mutex);
	count();
	int outcome = (int)syscall(SYS_mkdirat, AT_FDCWD, name, mode);
	if (!outcome)
		note_name(MADE_DIR, path, "", "");
	pthread_mutex_unlock(&mutex);
	return outcome;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int outcome = (int)syscall(SYS_clock_gettime, clock, time);
	if (!outcome && clock == CLOCK_REALTIME)
		time->tv_sec += clock_offset_s;
	return outcome;
}
