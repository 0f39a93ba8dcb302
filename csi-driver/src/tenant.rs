//! Whose a volume is, and where a tenant's own folder is.
//!
//! A tenant is a namespace and a ServiceAccount in it, as the kubelet says of the pod, or a domain that the admin has put
//! several of them into. Its folder's name is a keyed hash: who lacks the key, which lies in the driver's closed state folder,
//! can't guess it.
//!
//! **Must not know:** requests, files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Whose a volume is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tenant {
    /// The pods of one ServiceAccount.
    Account {
        /// Its namespace.
        namespace: String,
        /// Its name.
        account: String,
    },
    /// The pods of all accounts that an admin put into one domain.
    Domain(String),
}

/// Which accounts may be in which domain: `namespace/account`, or `namespace/*`.
pub type Domains = BTreeMap<String, Vec<String>>;

/// Whether an admin has put an account into a domain.
#[must_use]
pub fn may_join(domains: &Domains, domain: &str, namespace: &str, account: &str) -> bool {
    domains.get(domain).is_some_and(|members| {
        members.iter().any(|member| {
            member
                .split_once('/')
                .is_some_and(|(space, name)| space == namespace && (name == "*" || name == account))
        })
    })
}

/// The driver's own secret, made once.
#[derive(Clone)]
pub struct Key(pub [u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The name of a tenant's folder: 32 hexadecimal digits.
    #[must_use]
    pub fn folder(&self, tenant: &Tenant) -> String {
        let parts: [&str; 3] = match tenant {
            Tenant::Account { namespace, account } => ["account", namespace, account],
            Tenant::Domain(name) => ["domain", name, ""],
        };
        let mut hash = Sha256::new();
        hash.update(self.0);
        for part in parts {
            // The length first, so that no two lists of parts are the same bytes.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hex(&hash.finalize()[..16])
    }
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(namespace: &str, account: &str) -> Tenant {
        Tenant::Account { namespace: namespace.into(), account: account.into() }
    }

    #[test]
    fn each_tenant_has_a_folder_of_its_own_that_depends_on_the_key() {
        let key = Key([1; 32]);
        let tenants = [
            account("a", "bc"),
            account("ab", "c"),
            account("a", "b"),
            account("domain", "x"),
            Tenant::Domain("x".into()),
            Tenant::Domain("a".into()),
        ];
        let folders: std::collections::BTreeSet<_> =
            tenants.iter().map(|tenant| key.folder(tenant)).collect();
        assert_eq!(folders.len(), tenants.len());
        assert!(folders.iter().all(|name| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())));
        assert_ne!(Key([2; 32]).folder(&tenants[0]), key.folder(&tenants[0]));
        assert_eq!(format!("{key:?}"), "Key(..)");
    }

    #[test]
    fn only_accounts_that_the_admin_names_may_join_a_domain() {
        let domains: Domains =
            [("physics".to_owned(), vec!["cms/prod".to_owned(), "atlas/*".to_owned()])].into();
        assert!(may_join(&domains, "physics", "cms", "prod"));
        assert!(may_join(&domains, "physics", "atlas", "anyone"));
        for (domain, namespace, account) in [
            ("physics", "cms", "dev"),
            ("physics", "cms/prod", ""),
            ("other", "cms", "prod"),
            ("physics", "*", "prod"),
        ] {
            assert!(!may_join(&domains, domain, namespace, account));
        }
    }
}
