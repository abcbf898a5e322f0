-- What stations took from the folders they watch, written with the inspection it became: after a restart, however it came
-- about, a picture that was inspected is not inspected again. Stays on the device.

CREATE TABLE watched_files (
    station      TEXT NOT NULL CHECK (station <> ''),       -- station by name
    path         TEXT NOT NULL CHECK (path <> ''),          -- the picture file
    bytes        INTEGER NOT NULL CHECK (bytes >= 0),       -- its length when it was taken
    modified_ns  INTEGER NOT NULL,                          -- when it had been written, ns since 1970; another time makes it a new picture
    PRIMARY KEY (station, path)
) STRICT, WITHOUT ROWID;
