//! What a few repositories need of somebody's logins, as an auth file that a node can be given.
//!
//! Each login stands under its repository and not under the registry: who holds the excerpt gets no further with it than
//! these images, as far as the key goes. Helper programs are asked here, since nobody else could ask them.
//!
//! **Must not know:** who is given the excerpt.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Value, json};

use super::access::{Logins, RegistryAccess};
use super::error::RegistryError;
use super::login::{self, Login};
use crate::repository::Repository;

/// Logins for some repositories. They are shown nowhere but in [`LoginExcerpt::auth_file`].
#[derive(Clone, PartialEq, Eq)]
pub struct LoginExcerpt {
    auths: BTreeMap<String, Value>,
    /// Registries whose login is a token: the kubelet, and docker's format for it, know user and password only.
    pub left_out: BTreeSet<String>,
}

impl fmt::Debug for LoginExcerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginExcerpt").field("for", &self.auths.keys()).finish_non_exhaustive()
    }
}

impl LoginExcerpt {
    /// Whether no login is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.auths.is_empty()
    }

    /// The repositories that it is for, as `host/path`.
    pub fn repositories(&self) -> impl Iterator<Item = &str> {
        self.auths.keys().map(String::as_str)
    }

    /// The content of an auth file. It is a secret.
    #[must_use]
    pub fn auth_file(&self) -> String {
        json!({"auths": self.auths}).to_string()
    }
}

impl RegistryAccess {
    /// The logins that these repositories would be asked with. Blocks while files are read and helpers asked.
    ///
    /// # Errors
    /// When an auth file can't be read or is none, or a helper fails.
    pub fn excerpt<'a>(
        &self,
        repositories: impl IntoIterator<Item = &'a Repository>,
    ) -> Result<LoginExcerpt, RegistryError> {
        let mut excerpt = LoginExcerpt { auths: BTreeMap::new(), left_out: BTreeSet::new() };
        for repository in repositories {
            let login = match &self.logins {
                Logins::None => None,
                Logins::Usual(files) => login::find(files, false, repository)?,
                Logins::File(file) => login::find(std::slice::from_ref(file), true, repository)?,
            };
            match login {
                None => {}
                Some(Login::Password { user, secret }) => {
                    let basic = http_auth::basic::encode_credentials(&user, &secret);
                    let auth = basic.strip_prefix("Basic ").unwrap_or(&basic);
                    excerpt.auths.insert(repository.to_string(), json!({"auth": auth}));
                }
                Some(Login::Identity(_) | Login::Bearer(_)) => {
                    excerpt.left_out.insert(repository.host().to_owned());
                }
            }
        }
        Ok(excerpt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::access::Registries;

    fn repository(name: &str) -> Repository {
        crate::repository::parse(name).unwrap().repository
    }

    #[test]
    fn only_what_these_repositories_need_is_in_it_and_it_is_read_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        // user:pass, team:pass, other:pass
        let text = r#"{"auths": {"h.x": {"auth": "dXNlcjpwYXNz"}, "h.x/team": {"auth": "dGVhbTpwYXNz"},
            "other.x": {"auth": "b3RoZXI6cGFzcw=="}, "t.x": {"identitytoken": "abc"}}}"#;
        std::fs::write(&file, text).unwrap();
        let access = RegistryAccess::new(Registries::default(), Logins::File(file));
        let wanted = ["h.x/a", "h.x/team/fit", "t.x/a", "open.x/a"].map(repository);
        let excerpt = access.excerpt(&wanted).unwrap();
        let all =
            json!({"auths": {"h.x/a": {"auth": "dXNlcjpwYXNz"}, "h.x/team/fit": {"auth": "dGVhbTpwYXNz"}}});
        assert_eq!(excerpt.auth_file(), all.to_string());
        assert_eq!(excerpt.left_out, ["t.x".to_owned()].into());
        assert!(!format!("{excerpt:?}").contains("dXNl"));
        let again = dir.path().join("again.json");
        std::fs::write(&again, excerpt.auth_file()).unwrap();
        let again = RegistryAccess::new(Registries::default(), Logins::File(again));
        assert_eq!(again.excerpt(&wanted[..2]).unwrap().auths, excerpt.auths);
        assert!(again.excerpt(&wanted[2..]).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let missing = RegistryAccess::new(Registries::default(), Logins::File("/none.json".into()));
        assert!(missing.excerpt(&[repository("h.x/a")]).is_err());
        let usual = RegistryAccess::new(Registries::default(), Logins::Usual(vec!["/none.json".into()]));
        assert!(usual.excerpt(&[repository("h.x/a")]).unwrap().is_empty());
    }
}
