//! The chunks of a PNG (ISO/IEC 15948): its size, transparency, checksums, and proof that its end chunk is there.

use super::container::Header;

const CRC_TABLES: [[u32; 256]; 4] = crc_tables();

/// Walk the chunks from IHDR to IEND, checking each one's checksum.
///
/// # Errors
/// In words, where the file breaks off or which chunk is damaged.
pub fn inspect(bytes: &[u8]) -> Result<Header, String> {
    let mut header: Option<Header> = None;
    let mut has_data = false;
    let mut at = 8;
    loop {
        let cut = || format!("it is cut off after {} bytes", bytes.len());
        let length = be32(bytes, at).ok_or_else(cut)? as usize;
        let end = at.checked_add(length).and_then(|end| end.checked_add(12)).ok_or_else(cut)?;
        let chunk = bytes.get(at + 4..end).ok_or_else(cut)?;
        let (kind, rest) = chunk.split_at(4);
        let (body, stored) = rest.split_at(length);
        if crc32(&chunk[..4 + length]).to_be_bytes() != stored {
            return Err(format!("the checksum of its {} chunk at byte {at} is wrong", kind.escape_ascii()));
        }
        match (kind, header.as_mut()) {
            (b"IHDR", None) => header = Some(image_header(body)?),
            (_, None) => return Err("it does not begin with its header".to_owned()),
            (b"tRNS", Some(header)) => header.has_alpha = true,
            (b"IDAT", Some(_)) => has_data = true,
            (b"IEND", Some(header)) if has_data => return Ok(*header),
            (b"IEND", Some(_)) => return Err("it holds no picture data".to_owned()),
            _ => {}
        }
        at = end;
    }
}

fn image_header(body: &[u8]) -> Result<Header, String> {
    let short = || "its header is too short".to_owned();
    let width_px = be32(body, 0).ok_or_else(short)?;
    let height_px = be32(body, 4).ok_or_else(short)?;
    let color_type = *body.get(9).ok_or_else(short)?;
    Ok(Header { width_px, height_px, has_alpha: color_type & 4 != 0 })
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// CRC-32 as PNG's annex D defines it, four bytes a step.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let [a, b, c, d] = (crc ^ u32::from_le_bytes(*word)).to_le_bytes();
        crc = CRC_TABLES[3][usize::from(a)]
            ^ CRC_TABLES[2][usize::from(b)]
            ^ CRC_TABLES[1][usize::from(c)]
            ^ CRC_TABLES[0][usize::from(d)];
    }
    for &byte in rest {
        crc = CRC_TABLES[0][usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8);
    }
    !crc
}

const fn crc_tables() -> [[u32; 256]; 4] {
    let mut tables = [[0_u32; 256]; 4];
    let mut index = 0;
    let mut value = 0_u32;
    while index < 256 {
        let mut crc = value;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        tables[0][index] = crc;
        index += 1;
        value += 1;
    }
    let mut table = 1;
    while table < 4 {
        let mut index = 0;
        while index < 256 {
            let before = tables[table - 1][index];
            tables[table][index] = tables[0][(before & 0xFF) as usize] ^ (before >> 8);
            index += 1;
        }
        table += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::crc32;

    #[test]
    fn crc_of_the_check_string_is_the_published_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b"IEND"), 0xAE42_6082);
    }
}
