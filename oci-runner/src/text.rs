//! A short line of text on the stack, for a process that may not allocate.

use std::ffi::CStr;

/// What the kernel takes as one parameter of fsconfig(2).
pub(crate) type Parameter = Text<256>;
/// What the kernel takes as the options of mount(2): a page.
pub(crate) type Options = Text<4096>;

/// Up to `ROOM - 1` bytes without a zero, always terminated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<const ROOM: usize> {
    bytes: [u8; ROOM],
    used: usize,
}

impl<const ROOM: usize> Default for Text<ROOM> {
    fn default() -> Self {
        Self { bytes: [0; ROOM], used: 0 }
    }
}

impl<const ROOM: usize> Text<ROOM> {
    /// A number in decimal.
    pub(crate) fn number(number: u32) -> Self {
        let mut text = Self::default();
        text.push_number(number);
        text
    }

    /// Appends, or answers `false` and changes nothing when it does not fit.
    pub(crate) fn push(&mut self, more: &[u8]) -> bool {
        let end = self.used + more.len();
        if end >= ROOM {
            return false;
        }
        self.bytes[self.used..end].copy_from_slice(more);
        self.used = end;
        true
    }

    /// Appends a number in decimal; as [`Text::push`].
    pub(crate) fn push_number(&mut self, mut number: u32) -> bool {
        let mut digits = [0u8; 10];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push(&digits[first..])
    }

    /// The text so far.
    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 7, 10, 4_294_967_295] {
            assert_eq!(Parameter::number(number).as_c_str().to_str(), Ok(number.to_string().as_str()));
        }
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut text = Parameter::default();
        assert!(text.push(&[b'x'; 250]));
        assert!(!text.push_number(123_456));
        assert!(text.push_number(12_345));
        assert_eq!(text.as_c_str().to_bytes().len(), 255);
    }
}
