//! How an endpoint is let in: reads the challenge of a 401 and gets what it asks for, a password from the auth
//! files or a token from the server that it names.

use std::sync::atomic::Ordering;

use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Method, Response, Url};
use serde::Deserialize;

use super::endpoint::{Endpoint, body};
use super::error::RegistryError;
use super::login::Login;
use super::transport::{Failure, Request, Transport, authority, protocol};

/// A token is a signed JSON of some thousand bytes.
const TOKEN_BYTES_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Endpoint {
    /// Gets what the challenge of `refused` asks for. Of several who were refused one goes, the others take
    /// what it brought.
    pub(super) async fn authorize(
        &self,
        transport: &Transport,
        refused: &Response,
        used: Option<&str>,
    ) -> Result<(), Failure> {
        let mut authorization = self.authorization.lock().await;
        if authorization.as_deref() != used {
            return Ok(());
        }
        let headers = refused.headers().get_all(WWW_AUTHENTICATE).iter();
        let texts: Vec<&str> = headers.filter_map(|value| value.to_str().ok()).collect();
        let challenges = texts.iter().filter_map(|text| http_auth::parse_challenges(text).ok()).flatten();
        let challenges: Vec<_> = challenges.collect();
        let find = |scheme: &str| challenges.iter().find(|c| c.scheme.eq_ignore_ascii_case(scheme));
        let value = if let Some(challenge) = find("bearer") {
            let of = |name: &str| {
                let param = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                param.map(|(_, value)| value.to_unescaped())
            };
            self.bearer(transport, of("realm"), of("service"), of("scope")).await?
        } else if find("basic").is_some() {
            let plain = refused.url().scheme() != "https";
            if plain && !transport.access.may_be_plain(self.host()) {
                return Err(Failure::Final(RegistryError::PlainPassword { host: self.host().to_owned() }));
            }
            let value = match &self.login {
                Some(Login::Password { user, secret }) => http_auth::basic::encode_credentials(user, secret),
                _ => return Err(self.denied(401, &self.repository.to_string())),
            };
            // A password that was refused is not sent again: some servers count.
            if used == Some(value.as_str()) {
                return Err(self.denied(401, &self.repository.to_string()));
            }
            value
        } else {
            return Err(self.denied(401, &self.repository.to_string()));
        };
        self.asked.store(self.login.is_some(), Ordering::Relaxed);
        *authorization = Some(value);
        Ok(())
    }

    async fn bearer(
        &self,
        transport: &Transport,
        realm: Option<String>,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String, Failure> {
        if let Some(Login::Bearer(token)) = &self.login {
            return Ok(format!("Bearer {token}"));
        }
        let realm = realm.and_then(|realm| Url::parse(&realm).ok());
        let mut url = realm.ok_or_else(|| protocol(self.host(), "its challenge names no token server"))?;
        let host = authority(&url);
        if url.scheme() != "https" && !(url.scheme() == "http" && transport.access.may_be_plain(&host)) {
            return Err(Failure::Final(RegistryError::PlainPassword { host }));
        }
        let scope =
            scope.unwrap_or_else(|| format!("repository:{}:{}", self.repository.path(), self.actions));
        let mut pairs = vec![("scope", scope.as_str())];
        pairs.extend(service.as_deref().map(|service| ("service", service)));
        let response = if let Some(Login::Identity(token)) = &self.login {
            pairs.extend([("grant_type", "refresh_token"), ("client_id", "latebind")]);
            pairs.push(("refresh_token", token));
            // The query of an address without anything else is a form.
            let form = Url::parse_with_params("form:", &pairs).ok();
            transport.post(url, form.as_ref().and_then(Url::query).unwrap_or_default().to_owned()).await?
        } else {
            url.query_pairs_mut().extend_pairs(pairs);
            let authorization = match &self.login {
                Some(Login::Password { user, secret }) => {
                    url.query_pairs_mut().append_pair("account", user);
                    Some(http_auth::basic::encode_credentials(user, secret))
                }
                _ => None,
            };
            let request = Request { method: Method::GET, url, accept: None, from: None, piece: None };
            transport.send(&request, authorization.as_deref()).await?.response
        };
        if !response.status().is_success() {
            return Err(self.refusal(&response, &self.repository.to_string(), false));
        }
        let bytes = body(response, TOKEN_BYTES_MAX, &host, "a token").await?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|_| protocol(&host, "its token server gives no token"))?;
        let token = token.token.filter(|token| !token.is_empty()).or(token.access_token);
        token
            .map(|token| format!("Bearer {token}"))
            .ok_or_else(|| protocol(&host, "its token server gives no token"))
    }
}
