//! TLS by rustls: who vouches for the central database, and what of its certificate is checked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use tokio_postgres::Socket;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::UplinkError;
use super::dsn::TlsMode;

/// A maker of TLS connections that notes whether one was made: under `prefer` the server may offer none.
#[derive(Clone)]
pub(super) struct Connector {
    inner: MakeRustlsConnect,
    was_used: Arc<AtomicBool>,
}

impl Connector {
    /// # Errors
    /// When the authorities cannot be read, or there are none.
    pub fn new(server: &str, mode: TlsMode, root_cert: Option<&Path>) -> Result<Self, UplinkError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| UplinkError::Roots { server: server.to_owned(), detail: error.to_string() })?;
        let config = match (mode, root_cert) {
            (TlsMode::Disable | TlsMode::Prefer, None) => {
                let unchecked = Arc::new(Lenient { provider, authorities: None });
                config.dangerous().with_custom_certificate_verifier(unchecked).with_no_client_auth()
            }
            (TlsMode::Disable | TlsMode::Prefer | TlsMode::VerifyCa, _) => {
                let authorities = authorities(server, root_cert, &provider)?;
                let unnamed = Arc::new(Lenient { provider, authorities: Some(authorities) });
                config.dangerous().with_custom_certificate_verifier(unnamed).with_no_client_auth()
            }
            (TlsMode::Require | TlsMode::VerifyFull, _) => {
                config.with_root_certificates(roots(server, root_cert)?).with_no_client_auth()
            }
        };
        Ok(Self { inner: MakeRustlsConnect::new(config), was_used: Arc::new(AtomicBool::new(false)) })
    }

    /// Whether a connection was encrypted.
    pub fn was_used(&self) -> bool {
        self.was_used.load(Ordering::Relaxed)
    }
}

type Inner = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

impl MakeTlsConnect<Socket> for Connector {
    type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = NotedConnect;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<NotedConnect, Self::Error> {
        let inner = MakeTlsConnect::<Socket>::make_tls_connect(&mut self.inner, domain)?;
        Ok(NotedConnect { inner, was_used: Arc::clone(&self.was_used) })
    }
}

/// One TLS connection to be made.
pub(super) struct NotedConnect {
    inner: Inner,
    was_used: Arc<AtomicBool>,
}

impl TlsConnect<Socket> for NotedConnect {
    type Stream = <Inner as TlsConnect<Socket>>::Stream;
    type Error = <Inner as TlsConnect<Socket>>::Error;
    type Future = <Inner as TlsConnect<Socket>>::Future;

    fn connect(self, stream: Socket) -> Self::Future {
        self.was_used.store(true, Ordering::Relaxed);
        self.inner.connect(stream)
    }
}

fn roots(server: &str, root_cert: Option<&Path>) -> Result<RootCertStore, UplinkError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = root_cert else {
        let loaded = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(loaded.certs);
        if added == 0 {
            let detail = loaded.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
            return Err(UplinkError::Roots { server: server.to_owned(), detail });
        }
        return Ok(roots);
    };
    let unusable = |detail: String| UplinkError::RootFile { path: path.to_owned(), detail };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))? {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    Ok(roots)
}

fn authorities(
    server: &str,
    root_cert: Option<&Path>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, UplinkError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots(server, root_cert)?), Arc::clone(provider))
        .build()
        .map_err(|error| UplinkError::Roots { server: server.to_owned(), detail: error.to_string() })
}

/// Checks less than rustls by itself: the authority but not the name (`verify-ca`), or neither (`prefer`).
/// That the server holds the certificate's key is always proved.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    authorities: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        // The name is looked at last, when authority and time have passed.
        match authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What is wrong with the server's certificate and what to do, where `error` is about that.
pub(super) fn certificate_fault(error: &TlsError) -> (String, &'static str) {
    let TlsError::InvalidCertificate(fault) = error else {
        return (format!("TLS fails: {error}"), "check that the server speaks TLS 1.2 or newer");
    };
    match fault {
        CertificateError::UnknownIssuer => (
            "its certificate is by an authority that is not trusted here".to_owned(),
            "name the authority's certificate by sslrootcert=FILE in the DSN, or add it to those of the system",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "its certificate has expired".to_owned(),
            "renew it on the server; where it is still valid, set this machine's clock",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            "its certificate is not valid yet".to_owned(),
            "set this machine's clock, or the server's certificate right",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            format!("its certificate is not for this host name ({fault})"),
            "use a host name that the certificate holds, have one issued for this name, or say sslmode=verify-ca",
        ),
        other => (
            format!("its certificate is not accepted: {other}"),
            "have a server certificate issued (X.509 v3, subjectAltName, not an authority's own)",
        ),
    }
}
