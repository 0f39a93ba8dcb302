//! How this pilot reaches persistent objects: the settings, and AWS's usual variables where they say nothing.
//!
//! A workstation sends this along with a workflow that needs it, so it can be written down; never on a disk.
//!
//! **Must not know:** what is fetched.

use std::fmt;
use std::path::PathBuf;

use objects::{Credentials, Settings};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, Surroundings};

/// What is set about objects.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The server.
    pub endpoint: Option<String>,
    /// What requests are signed for.
    pub region: Option<String>,
    /// A file of certificates.
    pub ca: Option<PathBuf>,
    /// Whether plain http will do.
    pub allow_http: Option<bool>,
}

/// How objects are reached.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectAccess {
    endpoint: Option<String>,
    region: Option<String>,
    key: Option<Key>,
    allow_http: bool,
    ca: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    id: String,
    secret: String,
    token: Option<String>,
}

impl fmt::Debug for ObjectAccess {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectAccess")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("key", &self.key.is_some())
            .field("allow_http", &self.allow_http)
            .field("ca", &self.ca.is_some())
            .finish()
    }
}

impl ObjectAccess {
    /// From the settings and the surroundings.
    ///
    /// # Errors
    /// When certificates can't be read, or the server's address is none.
    pub fn new(given: Given, around: &Surroundings) -> Result<Self, ConfigError> {
        let aws = &around.aws;
        let read = |path: PathBuf| {
            std::fs::read_to_string(&path).map_err(|source| ConfigError::Certificates { path, source })
        };
        let key = aws.access_key_id.clone().zip(aws.secret_access_key.clone());
        let access = Self {
            endpoint: given.endpoint.or_else(|| aws.endpoint.clone()),
            region: given.region.or_else(|| aws.region.clone()),
            key: key.map(|(id, secret)| Key { id, secret, token: aws.session_token.clone() }),
            allow_http: given.allow_http.unwrap_or(false),
            ca: given.ca.or_else(|| aws.ca_bundle.clone()).map(read).transpose()?,
        };
        access.settings().check()?;
        Ok(access)
    }

    /// As the library takes them.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let key = self.key.as_ref().map(|key| Credentials {
            access_key_id: key.id.clone(),
            secret_access_key: key.secret.clone(),
            session_token: key.token.clone(),
        });
        Settings {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            credentials: key,
            allow_http: self.allow_http,
            ca: self.ca.clone().map(String::into_bytes),
            ..Settings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::surroundings::AwsVariables;

    fn around() -> Surroundings {
        let aws = AwsVariables {
            endpoint: Some("https://s3.example.org".into()),
            region: Some("here".into()),
            access_key_id: Some("AKIDEXAMPLE".into()),
            secret_access_key: Some("hunter2".into()),
            ..AwsVariables::default()
        };
        Surroundings { aws, ..Surroundings::default() }
    }

    #[test]
    fn what_is_set_wins_over_the_usual_variables() {
        let usual = ObjectAccess::new(Given::default(), &around()).expect("usable").settings();
        assert_eq!(usual.endpoint.as_deref(), Some("https://s3.example.org"));
        assert_eq!(usual.credentials.map(|key| key.access_key_id).as_deref(), Some("AKIDEXAMPLE"));
        let endpoint = Some("https://other.example.org".to_owned());
        let set = ObjectAccess::new(Given { endpoint: endpoint.clone(), ..Given::default() }, &around());
        let set = set.expect("usable").settings();
        assert_eq!((set.endpoint, set.region.as_deref()), (endpoint, Some("here")));
    }

    #[test]
    fn a_wrong_server_or_missing_certificates_are_told_at_the_start() {
        let wrong = Given { endpoint: Some("http://s3.example.org".into()), ..Given::default() };
        let error = ObjectAccess::new(wrong, &around()).expect_err("plain http");
        assert!(error.to_string().contains("plain http"), "{error}");
        let missing = Given { ca: Some("/nowhere/ca.pem".into()), ..Given::default() };
        let error = ObjectAccess::new(missing, &around()).expect_err("no file");
        assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    }

    #[test]
    fn secrets_are_not_shown_and_travel() {
        let access = ObjectAccess::new(Given::default(), &around()).expect("usable");
        assert!(!format!("{access:?} {:?}", around()).contains("hunter2"));
        let sent = serde_json::to_string(&access).expect("json");
        assert_eq!(serde_json::from_str::<ObjectAccess>(&sent).expect("it is read"), access);
    }
}
