//! Files with secrets, encrypted with a passphrase.
//!
//! Argon2id (64 MiB, 3 passes) makes the key, ChaCha20-Poly1305 encrypts and authenticates the files together with the
//! parameters. The cipher is that of the TLS library that is linked anyway; Argon2id is the one addition, since what
//! protects a stolen backup is the price of a guess.

use std::path::PathBuf;

use argon2::{Algorithm, Argon2, Params, Version};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

/// Fewer characters than this are guessed.
pub(super) const PASSPHRASE_CHARS_MIN: usize = 12;
const FORMAT: &str = "loupe-sealed/1";
const SALT_BYTES: usize = 16;
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
/// A file that asks for more is not ours.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 64;

/// A file with a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SecretFile {
    /// Absolute.
    pub path: PathBuf,
    /// Permissions.
    pub mode: u32,
    /// Content in hexadecimal.
    content: String,
}

impl SecretFile {
    pub fn new(path: PathBuf, mode: u32, bytes: &[u8]) -> Self {
        Self { path, mode, content: hex(bytes) }
    }

    pub fn bytes(&self) -> Option<Vec<u8>> {
        unhex(&self.content)
    }
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The member `secrets.sealed`; everything but the cipher text is authenticated with it.
#[derive(Serialize, Deserialize)]
struct Envelope {
    format: String,
    memory_kib: u32,
    passes: u32,
    salt: String,
    nonce: String,
    cipher_text: String,
}

impl Envelope {
    fn associated(&self) -> String {
        format!("{} {} {} {} {}", self.format, self.memory_kib, self.passes, self.salt, self.nonce)
    }
}

/// Encrypt `files`; the error says what the machine lacks.
pub(super) fn seal(files: &[SecretFile], passphrase: &str) -> Result<Vec<u8>, String> {
    let random = SystemRandom::new();
    let mut salt = [0_u8; SALT_BYTES];
    let mut nonce = [0_u8; NONCE_LEN];
    random.fill(&mut salt).and_then(|()| random.fill(&mut nonce)).map_err(|_| "no randomness".to_owned())?;
    let mut envelope = Envelope {
        format: FORMAT.to_owned(),
        memory_kib: MEMORY_KIB,
        passes: PASSES,
        salt: hex(&salt),
        nonce: hex(&nonce),
        cipher_text: String::new(),
    };
    let key = key(passphrase, &salt, MEMORY_KIB, PASSES).ok_or("no memory for the key")?;
    let mut text = serde_json::to_vec(files).map_err(|error| error.to_string())?;
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(envelope.associated().as_bytes()),
        &mut text,
    )
    .map_err(|_| "the cipher refused".to_owned())?;
    envelope.cipher_text = hex(&text);
    serde_json::to_vec(&envelope).map_err(|error| error.to_string())
}

/// Decrypt; `None` where the passphrase is wrong or anything was changed.
pub(super) fn open(sealed: &[u8], passphrase: &str) -> Option<Vec<SecretFile>> {
    let envelope: Envelope = serde_json::from_slice(sealed).ok()?;
    if envelope.format != FORMAT || envelope.memory_kib > MEMORY_KIB_MAX || envelope.passes > PASSES_MAX {
        return None;
    }
    let nonce: [u8; NONCE_LEN] = unhex(&envelope.nonce)?.try_into().ok()?;
    let key = key(passphrase, &unhex(&envelope.salt)?, envelope.memory_kib, envelope.passes)?;
    let mut text = unhex(&envelope.cipher_text)?;
    let aad = envelope.associated();
    let plain = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad.as_bytes()), &mut text).ok()?;
    serde_json::from_slice(plain).ok()
}

fn key(passphrase: &str, salt: &[u8], memory_kib: u32, passes: u32) -> Option<LessSafeKey> {
    let params = Params::new(memory_kib, passes, 1, Some(32)).ok()?;
    let mut bytes = [0_u8; 32];
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase.as_bytes(), salt, &mut bytes).ok()?;
    UnboundKey::new(&CHACHA20_POLY1305, &bytes).ok().map(LessSafeKey::new)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len() / 2).map(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{SecretFile, open, seal};

    #[test]
    fn only_the_passphrase_opens_what_was_not_changed() {
        let files = [SecretFile::new("/etc/loupe/dsn".into(), 0o600, b"postgresql://dev:hunter2@db/loupe")];
        let sealed = seal(&files, "correct horse battery").unwrap();
        assert!(!String::from_utf8_lossy(&sealed).contains("hunter2"));
        assert_eq!(open(&sealed, "correct horse battery").unwrap(), files);
        assert!(open(&sealed, "correct horse batterz").is_none());
        let text = String::from_utf8(sealed.clone()).unwrap();
        let weaker = text.replace("\"passes\":3", "\"passes\":1");
        assert_ne!(weaker, text);
        assert!(open(weaker.as_bytes(), "correct horse battery").is_none(), "parameters are not authenticated");
        let mut flipped = sealed;
        let middle = flipped.len() - 20;
        flipped[middle] = if flipped[middle] == b'0' { b'1' } else { b'0' };
        assert!(open(&flipped, "correct horse battery").is_none());
        assert_ne!(seal(&files, "correct horse battery").unwrap(), seal(&files, "correct horse battery").unwrap());
    }
}
