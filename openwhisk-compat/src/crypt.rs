//! Encrypted parameters (contract 4.4).
//!
//! A locked value is base-64 of `int32 big-endian length of iv | iv | ciphertext and 16-byte tag`, AES-GCM.
//! Upstream writes an iv of 12 bytes with `aes-128` and of 128 bytes with `aes-256`.

use std::collections::BTreeMap;

use aes_gcm::aead::generic_array::ArrayLength;
use aes_gcm::aead::{Aead, KeyInit, Nonce, consts};
use aes_gcm::aes::{Aes128, Aes256};
use aes_gcm::{AesGcm, KeySizeUser};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

/// The keys parameters may be encrypted with.
#[derive(Clone, Default)]
pub struct ParameterKeys {
    aes_128: Option<[u8; 16]>,
    aes_256: Option<[u8; 32]>,
}

/// A key that cannot be used. The key itself is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not base-64.
    #[error("key for {algorithm} is not base-64")]
    Encoding {
        /// Which key.
        algorithm: &'static str,
    },
    /// Not the length the algorithm needs.
    #[error("key for {algorithm} has {found} bytes, expected {expected}")]
    Length {
        /// Which key.
        algorithm: &'static str,
        /// Its bytes.
        found: usize,
        /// The bytes it must have.
        expected: usize,
    },
}

/// A value that cannot be decrypted. Names the parameter, not the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parameter `{parameter}` cannot be decrypted: {reason}")]
pub struct CryptError {
    parameter: String,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("algorithm `{0}` is not known")]
    Algorithm(String),
    #[error("there is no key for {0}")]
    NoKey(&'static str),
    #[error("value is not base-64")]
    Encoding,
    #[error("value is too short to be encrypted")]
    Short,
    #[error("an iv of {0} bytes is not supported")]
    IvLength(u32),
    #[error("value was encrypted with another key, or altered")]
    Authentication,
    #[error("decrypted value is not JSON")]
    NotJson,
}

const AES_128: &str = "aes-128";
const AES_256: &str = "aes-256";

impl ParameterKeys {
    /// Keys as they are configured, in base-64 (`parameter-storage.aes-128`, `.aes-256`).
    ///
    /// # Errors
    /// A key that is not base-64 or has the wrong length.
    pub fn from_base64(aes_128: Option<&str>, aes_256: Option<&str>) -> Result<Self, KeyError> {
        Ok(Self { aes_128: key(AES_128, aes_128)?, aes_256: key(AES_256, aes_256)? })
    }

    /// Decrypts in `content` the members named in `locked` (contract 2.1, `lockedArgs`). Only texts are
    /// encrypted: a member that is missing or something else is left as it is.
    ///
    /// # Errors
    /// The first member that cannot be decrypted; `content` may be changed in part then.
    pub fn unlock(&self, content: &mut Value, locked: &BTreeMap<String, String>) -> Result<(), CryptError> {
        let Value::Object(members) = content else { return Ok(()) };
        for (parameter, algorithm) in locked {
            if let Some(member @ Value::String(_)) = members.get_mut(parameter) {
                let text = member.as_str().unwrap_or_default();
                *member = self
                    .decrypt(algorithm, text)
                    .map_err(|reason| CryptError { parameter: parameter.clone(), reason })?;
            }
        }
        Ok(())
    }

    fn decrypt(&self, algorithm: &str, text: &str) -> Result<Value, Reason> {
        let (iv, sealed) = {
            let bytes = BASE64.decode(text).map_err(|_| Reason::Encoding)?;
            let (length, rest) = bytes.split_first_chunk().ok_or(Reason::Short)?;
            let length = u32::from_be_bytes(*length);
            let (iv, sealed) = usize::try_from(length)
                .ok()
                .and_then(|length| rest.split_at_checked(length))
                .ok_or(Reason::Short)?;
            (iv.to_vec(), sealed.to_vec())
        };
        let plain = match algorithm {
            AES_128 => open::<Aes128>(&self.aes_128.ok_or(Reason::NoKey(AES_128))?, &iv, &sealed)?,
            AES_256 => open::<Aes256>(&self.aes_256.ok_or(Reason::NoKey(AES_256))?, &iv, &sealed)?,
            other => return Err(Reason::Algorithm(other.chars().take(40).collect())),
        };
        serde_json::from_slice(&plain).map_err(|_| Reason::NotJson)
    }

    /// Encrypts a value as upstream's controller does, for the stand-alone mode and for tests. `iv` must be
    /// fresh for every value. `None` if there is no such algorithm or key, or the iv has an odd length.
    pub fn lock(&self, algorithm: &str, iv: &[u8], value: &Value) -> Option<String> {
        let plain = value.to_string();
        let sealed = match algorithm {
            AES_128 => with_iv::<Aes128>(&self.aes_128?, iv, plain.as_bytes(), Direction::Seal).ok()?,
            AES_256 => with_iv::<Aes256>(&self.aes_256?, iv, plain.as_bytes(), Direction::Seal).ok()?,
            _ => return None,
        };
        let mut bytes = u32::try_from(iv.len()).ok()?.to_be_bytes().to_vec();
        bytes.extend_from_slice(iv);
        bytes.extend_from_slice(&sealed);
        Some(BASE64.encode(bytes))
    }
}

impl std::fmt::Debug for ParameterKeys {
    /// Which keys there are, not what they are.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParameterKeys")
            .field(AES_128, &self.aes_128.is_some())
            .field(AES_256, &self.aes_256.is_some())
            .finish()
    }
}

fn key<const LENGTH: usize>(
    algorithm: &'static str,
    text: Option<&str>,
) -> Result<Option<[u8; LENGTH]>, KeyError> {
    let Some(text) = text else { return Ok(None) };
    let bytes = BASE64.decode(text.trim()).map_err(|_| KeyError::Encoding { algorithm })?;
    let found = bytes.len();
    bytes.try_into().map(Some).map_err(|_| KeyError::Length { algorithm, found, expected: LENGTH })
}

#[derive(Clone, Copy)]
enum Direction {
    Seal,
    Open,
}

fn open<Aes>(key: &[u8], iv: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Reason>
where
    Aes: Cipher,
{
    with_iv::<Aes>(key, iv, sealed, Direction::Open)
}

/// The block ciphers of the two algorithms.
trait Cipher: KeySizeUser + Sized {
    /// # Errors
    /// When the text is not authentic, or the key has the wrong length.
    fn run<Iv: ArrayLength<u8>>(
        key: &[u8],
        iv: &[u8],
        text: &[u8],
        direction: Direction,
    ) -> Result<Vec<u8>, Reason>;
}

macro_rules! cipher {
    ($($aes:ty),*) => {$(
        impl Cipher for $aes {
            fn run<Iv: ArrayLength<u8>>(
                key: &[u8],
                iv: &[u8],
                text: &[u8],
                direction: Direction,
            ) -> Result<Vec<u8>, Reason> {
                let gcm = AesGcm::<$aes, Iv>::new_from_slice(key).map_err(|_| Reason::Authentication)?;
                let nonce = Nonce::<AesGcm<$aes, Iv>>::from_slice(iv);
                match direction {
                    Direction::Seal => gcm.encrypt(nonce, text),
                    Direction::Open => gcm.decrypt(nonce, text),
                }
                .map_err(|_| Reason::Authentication)
            }
        }
    )*};
}

cipher!(Aes128, Aes256);

/// The length of an iv is part of the cipher's type: these are the ones there are.
fn with_iv<Aes: Cipher>(key: &[u8], iv: &[u8], text: &[u8], direction: Direction) -> Result<Vec<u8>, Reason> {
    macro_rules! lengths {
        ($($length:literal $type:ident),*) => {
            match iv.len() {
                $( $length => Aes::run::<consts::$type>(key, iv, text, direction), )*
                other => Err(Reason::IvLength(u32::try_from(other).unwrap_or(u32::MAX))),
            }
        };
    }
    lengths!(
        8 U8, 12 U12, 13 U13, 14 U14, 15 U15, 16 U16, 20 U20, 24 U24, 28 U28, 32 U32, 40 U40, 48 U48, 56 U56,
        60 U60, 64 U64, 96 U96, 128 U128, 256 U256, 512 U512
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn keys() -> ParameterKeys {
        ParameterKeys::from_base64(
            Some(&BASE64.encode(b"0123456789abcdef")),
            Some(&BASE64.encode(b"0123456789abcdef0123456789abcdef")),
        )
        .expect("keys")
    }

    fn unlock(keys: &ParameterKeys, value: &str, algorithm: &str) -> Result<Value, String> {
        let mut content = json!({ "p": value });
        let locked = BTreeMap::from([("p".to_owned(), algorithm.to_owned())]);
        keys.unlock(&mut content, &locked).map_err(|error| error.to_string())?;
        Ok(content["p"].take())
    }

    #[test]
    fn both_algorithms_and_iv_lengths() {
        for (algorithm, iv) in [(AES_128, vec![7; 12]), (AES_256, vec![9; 128]), (AES_128, vec![1; 16])] {
            for value in [json!("secret"), json!({"a": [1, null]}), json!(1.50), Value::Null] {
                let locked = keys().lock(algorithm, &iv, &value).expect("locked");
                assert_eq!(unlock(&keys(), &locked, algorithm), Ok(value));
            }
        }
    }

    /// Made with OpenSSL: iv 0, 1, 2, ... of 12 and of 128 bytes, in the envelope.
    #[test]
    fn what_another_implementation_wrote_is_read() {
        let aes_128 = "AAAADAABAgMEBQYHCAkKC4YdpT8kVviSylvl/tldZJy9l1tzMS6OWjhV";
        let aes_256 = concat!(
            "AAAAgAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj9A",
            "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVpbXF1eX2BhYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ent8fX5/",
            "sdDTnIBGZQ/Ul4fY2J0DFMh+Aj4rFeMg7sw=",
        );
        for (algorithm, value) in [(AES_128, aes_128), (AES_256, aes_256)] {
            assert_eq!(unlock(&keys(), value, algorithm), Ok(json!({ "a": "ä" })), "{algorithm}");
        }
    }

    #[test]
    fn only_locked_texts_are_touched() {
        let locked_value = keys().lock(AES_128, &[3; 12], &json!(7)).expect("locked");
        let mut content = json!({ "a": locked_value, "b": 5, "c": "plain" });
        let locked = ["a", "b", "missing"].map(|name| (name.to_owned(), AES_128.to_owned())).into();
        keys().unlock(&mut content, &locked).expect("unlocked");
        assert_eq!(content, json!({ "a": 7, "b": 5, "c": "plain" }));
        let mut array = json!(["x"]);
        keys().unlock(&mut array, &locked).expect("nothing to do");
        assert_eq!(array, json!(["x"]));
    }

    #[test]
    fn errors_name_the_parameter_and_the_reason() {
        let good = keys().lock(AES_128, &[7; 12], &json!("x")).expect("locked");
        let mut altered = BASE64.decode(&good).expect("base-64");
        *altered.last_mut().expect("bytes") ^= 1;
        let none = ParameterKeys::default();
        for (keys, value, algorithm, reason) in [
            (keys(), good.as_str(), "rot13", "algorithm `rot13` is not known"),
            (none, good.as_str(), AES_128, "there is no key for aes-128"),
            (keys(), "***", AES_128, "value is not base-64"),
            (keys(), "AAA=", AES_128, "value is too short to be encrypted"),
            (keys(), "/////w==", AES_128, "value is too short to be encrypted"),
            (keys(), "AAAAAA==", AES_128, "an iv of 0 bytes is not supported"),
            (keys(), good.as_str(), AES_256, "value was encrypted with another key, or altered"),
            (keys(), &BASE64.encode(&altered), AES_128, "value was encrypted with another key, or altered"),
        ] {
            let expected = format!("parameter `p` cannot be decrypted: {reason}");
            assert_eq!(unlock(&keys, value, algorithm), Err(expected));
        }
    }

    #[test]
    fn keys_are_checked_and_never_shown() {
        assert_eq!(
            ParameterKeys::from_base64(Some("***"), None).unwrap_err().to_string(),
            "key for aes-128 is not base-64"
        );
        assert_eq!(
            ParameterKeys::from_base64(None, Some("AAAA")).unwrap_err().to_string(),
            "key for aes-256 has 3 bytes, expected 32"
        );
        assert_eq!(format!("{:?}", keys()), "ParameterKeys { aes-128: true, aes-256: true }");
    }

    proptest! {
        #[test]
        fn no_value_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0u32..160) {
            let mut sealed = length.to_be_bytes().to_vec();
            sealed.extend_from_slice(&bytes);
            let _ = keys().decrypt(AES_128, &BASE64.encode(&sealed));
            let _ = keys().decrypt(AES_256, &BASE64.encode(&bytes));
        }
    }
}
