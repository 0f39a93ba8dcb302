//! What is wrong with a workflow file, said so that a person can mend it.
//!
//! Must not know: YAML, the fields of the format.

use std::fmt;
use std::path::PathBuf;

use super::located::Position;

/// Most problems that are told at once; a file with more has one cause for many of them.
const PROBLEMS_MAX: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub at: Position,
    /// One line: what is wrong; what to do.
    pub text: String,
}

impl Problem {
    /// Joins the place and the text. Control characters in the text (it quotes the file) are escaped.
    pub fn new(at: Position, text: impl Into<String>) -> Self {
        let text: String = text.into();
        if !text.chars().any(char::is_control) {
            return Self { at, text };
        }
        let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        Self { at, text: text.chars().map(escape).collect() }
    }
}

/// All that is wrong with a file, in the order of its lines, without repetition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    /// The file, as the user named it.
    pub file: PathBuf,
    /// At least one.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    /// `FILE:LINE:COLUMN: what is wrong; what to do`, one line each, no newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.list.iter().enumerate() {
            let newline = if number == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{}: {}", self.file.display(), problem.at, problem.text)?;
        }
        Ok(())
    }
}

/// Collects problems while a file is looked through.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    list: Vec<Problem>,
}

impl Complaints {
    pub(super) fn add(&mut self, at: Position, text: impl Into<String>) {
        // The surplus is cut in `finish`, after sorting and removing what is said twice.
        if self.list.len() < PROBLEMS_MAX * 10 {
            self.list.push(Problem::new(at, text));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn finish(mut self) -> Vec<Problem> {
        self.list.sort();
        self.list.dedup();
        if let Some(cut) = self.list.get(PROBLEMS_MAX) {
            let more = Problem::new(cut.at, "there is more wrong from here on; mend the lines above first");
            self.list.truncate(PROBLEMS_MAX);
            self.list.push(more);
        }
        self.list
    }
}

/// ` (did you mean "image"?)` when a known name is near enough, else nothing.
pub(super) fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(written, known) {
        Some(name) => format!(" (did you mean {name:?}?)"),
        None => String::new(),
    }
}

/// Longest name that is compared, in characters: the work is the product of two lengths.
const COMPARED_CHARS_MAX: usize = 80;

/// The known name with the fewest edits from `written`, at most a third of its length (two letters swapped are two edits).
fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written: Vec<char> = written.chars().take(COMPARED_CHARS_MAX + 1).collect();
    if written.is_empty() || written.len() > COMPARED_CHARS_MAX {
        return None;
    }
    let limit = written.len().div_ceil(3);
    known
        .into_iter()
        .filter(|name| name.len() <= COMPARED_CHARS_MAX && name.len().abs_diff(written.len()) <= limit)
        .map(|name| (edits(&written, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance, upper and lower case alike.
fn edits(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Foreign text, cut so that a message stays a line.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain(['…']).collect()
}

/// A list of words as people write it: `a`, `a or b`, `a, b or c`.
pub(super) fn either(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::{did_you_mean, edits, either};

    #[test]
    fn the_nearest_name_is_proposed_and_a_far_one_is_not() {
        let known = ["image", "inputs", "name"];
        assert_eq!(did_you_mean("imgae", known), " (did you mean \"image\"?)");
        assert_eq!(did_you_mean("Name", known), " (did you mean \"name\"?)");
        assert_eq!(did_you_mean("resources", known), "");
        assert_eq!(did_you_mean("", known), "");
        assert_eq!(did_you_mean(&"x".repeat(1000), known), "");
    }

    #[test]
    fn the_distance_counts_insertions_deletions_and_replacements() {
        let distance = |a: &str, b: &str| edits(&a.chars().collect::<Vec<_>>(), b);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn alternatives_read_like_a_sentence() {
        assert_eq!(either(&[]), "");
        assert_eq!(either(&["a"]), "a");
        assert_eq!(either(&["a", "b", "c"]), "a, b or c");
    }
}
