//! Error chains as one line.

/// The error and its sources, joined by `: `, each said once.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // `transparent` wrappers and Displays that include their source would say it twice.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text.replace('\n', " ")
}

/// What an API server said, or what kept it from saying anything, in one line.
#[must_use]
pub fn said_by_api(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.replace('\n', " "),
        other => chain(other),
    }
}

#[cfg(test)]
mod tests {
    #[derive(Debug, thiserror::Error)]
    #[error("bind slot 1")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_is_one_line_and_says_nothing_twice() {
        let error = Outer(std::io::Error::other("disk\nfull"));
        assert_eq!(super::chain(&error), "bind slot 1: disk full");
    }
}
