//! PAX extended header records. Pure; hostile input.

use crate::entry::{EntryError, Mtime, Xattr};
use crate::limits::Limits;

/// The records that matter for an image.
#[derive(Debug, Default)]
pub(crate) struct PaxRecords {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) mtime: Option<Mtime>,
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) sparse: PaxSparse,
}

/// GNU tar's three ways (0.0, 0.1, 1.0) to describe holes in PAX records.
#[derive(Debug, Default)]
pub(crate) struct PaxSparse {
    pub(crate) real_size: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// Comma-separated offsets and lengths.
    pub(crate) map: Vec<u8>,
    /// 1.0: the map stands in front of the data.
    pub(crate) map_in_data: bool,
}

/// Reads `<length> <key>=<value>\n` records; the length counts the whole record, so values may hold
/// anything.
pub(crate) fn parse_pax(bytes: &[u8], limits: &Limits) -> Result<PaxRecords, EntryError> {
    let mut records = PaxRecords::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        // Some writers pad with NUL.
        if rest.iter().all(|byte| *byte == 0) {
            break;
        }
        let space = rest.iter().take(20).position(|byte| *byte == b' ').ok_or(EntryError::Pax)?;
        let length = number(&rest[..space]).ok_or(EntryError::Pax)?;
        let length = usize::try_from(length).map_err(|_| EntryError::Pax)?;
        if length <= space + 2 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err(EntryError::Pax);
        }
        let record = &rest[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(EntryError::Pax)?;
        apply(&mut records, &record[..equals], &record[equals + 1..], limits)?;
        rest = &rest[length..];
    }
    Ok(records)
}

fn apply(records: &mut PaxRecords, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), EntryError> {
    // An empty value takes the header's field, by POSIX.
    let text = (!value.is_empty()).then(|| value.to_vec());
    let parsed = || number(value).ok_or(EntryError::Pax);
    match key {
        b"path" => records.path = text,
        b"linkpath" => records.link = text,
        b"size" if text.is_some() => records.size = Some(parsed()?),
        b"mtime" => records.mtime = Mtime::from_decimal(value),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => records.sparse.real_size = Some(parsed()?),
        b"GNU.sparse.name" => records.sparse.name = text,
        b"GNU.sparse.map" => records.sparse.map = value.to_vec(),
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
            if !records.sparse.map.is_empty() {
                records.sparse.map.push(b',');
            }
            records.sparse.map.extend_from_slice(value);
        }
        b"GNU.sparse.major" => records.sparse.map_in_data = value == b"1",
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                push_xattr(&mut records.xattrs, name, value, limits)?;
            }
        }
    }
    Ok(())
}

fn push_xattr(xattrs: &mut Vec<Xattr>, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), EntryError> {
    let bytes = name.len() + value.len();
    if bytes > limits.xattr_bytes || name.len() > 255 {
        return Err(EntryError::XattrTooLong { bytes, limit: limits.xattr_bytes });
    }
    if xattrs.len() >= limits.xattrs {
        return Err(EntryError::TooManyXattrs { limit: limits.xattrs });
    }
    if name.is_empty() || name.contains(&0) {
        return Err(EntryError::Pax);
    }
    xattrs.retain(|other| *other.name != *name);
    xattrs.push(Xattr { name: name.into(), value: value.into() });
    Ok(())
}

/// A decimal number without sign.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_line_breaks_and_equal_signs() {
        let limits = Limits::default();
        let records = parse_pax(b"26 SCHILY.xattr.user.a=\n=\n11 path=/x\n", &limits);
        let records = records.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(&*records.xattrs[0].value, b"\n=".as_slice());
        assert_eq!(records.path.as_deref(), Some(b"/x".as_slice()));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for text in
            ["5 path=x\n", "99 path=x\n", " path=x\n", "x path=x\n", "9 pathxx\n", "3 \n", "10 path=x\nz"]
        {
            assert!(parse_pax(text.as_bytes(), &Limits::default()).is_err(), "{text:?}");
        }
    }
}
