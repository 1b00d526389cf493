//! Names that come from outside, checked once: whoever holds one of these types need not check again.
//! They are shared text: cloning one copies a pointer.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is no wallet id, owner id or description. Each message names the field and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentifierError {
    /// Not a wallet id.
    #[error("{field} must be 1 to 128 characters of A-Z a-z 0-9 . _ : - and begin with a letter or a digit")]
    WalletId {
        /// The field that held it.
        field: &'static str,
    },
    /// Not an owner id.
    #[error("ownerId must be 1 to 256 characters without control characters")]
    OwnerId,
    /// Not a description.
    #[error("description must be at most 1024 characters without control characters")]
    Description,
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdentifierError;

            fn try_from(text: String) -> Result<Self, IdentifierError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0.as_ref().to_owned()
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdentifierError;

            fn from_str(text: &str) -> Result<Self, IdentifierError> {
                Self::new(text)
            }
        }
    };
}

text_type! {
    /// A wallet's name, the Kafka key and the event stream's name: 1 to 128 characters of
    /// `A-Z a-z 0-9 . _ : -`, beginning with a letter or a digit. It is safe in a URL, a header and a file name.
    WalletId
}

text_type! {
    /// Whose wallet it is: 1 to 256 characters, opaque to us, without control characters.
    OwnerId
}

text_type! {
    /// What a movement is for, in the caller's words: at most 1024 characters, without control characters.
    Description
}

impl WalletId {
    /// The longest wallet id, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks a wallet id.
    ///
    /// # Errors
    /// [`IdentifierError::WalletId`] where the text breaks the rule above.
    pub fn new(text: impl Into<String>) -> Result<Self, IdentifierError> {
        Self::for_field("walletId", text)
    }

    /// Checks a wallet id that stood in `field`, so that the error names that field.
    ///
    /// # Errors
    /// [`IdentifierError::WalletId`] where the text breaks the rule above.
    pub fn for_field(field: &'static str, text: impl Into<String>) -> Result<Self, IdentifierError> {
        let text = text.into();
        let begins_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-');
        if begins_well && text.len() <= Self::BYTES_MAX && text.bytes().all(allowed) {
            Ok(WalletId(text.into()))
        } else {
            Err(IdentifierError::WalletId { field })
        }
    }
}

impl OwnerId {
    /// Checks an owner id.
    ///
    /// # Errors
    /// [`IdentifierError::OwnerId`] where the text breaks the rule above.
    pub fn new(text: impl Into<String>) -> Result<Self, IdentifierError> {
        let text = text.into();
        if !text.is_empty() && is_plain_text(&text, 256) {
            Ok(OwnerId(text.into()))
        } else {
            Err(IdentifierError::OwnerId)
        }
    }
}

impl Description {
    /// Checks a description.
    ///
    /// # Errors
    /// [`IdentifierError::Description`] where the text breaks the rule above.
    pub fn new(text: impl Into<String>) -> Result<Self, IdentifierError> {
        let text = text.into();
        if is_plain_text(&text, 1024) { Ok(Description(text.into())) } else { Err(IdentifierError::Description) }
    }
}

fn is_plain_text(text: &str, characters_max: usize) -> bool {
    text.chars().count() <= characters_max && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wallet_ids_that_are_safe_everywhere_are_taken() {
        for text in ["a", "wallet-1", "wallet-wallet-7", "0", "A.b_c:d-e", &"x".repeat(128)] {
            assert!(WalletId::new(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn wallet_ids_that_could_mean_something_else_are_refused() {
        for text in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\0b",
            "a\nb",
            "a b",
            "💰",
            "-a",
            "_a",
            "a%2Fb",
            &"x".repeat(129),
            &"x".repeat(1_024),
        ] {
            assert_eq!(
                WalletId::for_field("toWalletId", text),
                Err(IdentifierError::WalletId { field: "toWalletId" }),
                "{text:?}"
            );
        }
    }

    #[test]
    fn owners_and_descriptions_hold_any_words_but_no_control_characters() {
        assert!(OwnerId::new("Zoë 💶").is_ok());
        assert!(OwnerId::new("").is_err());
        assert!(OwnerId::new("a\0").is_err());
        assert!(OwnerId::new("x".repeat(257)).is_err());
        assert!(Description::new("").is_ok());
        assert!(Description::new("ü".repeat(1_024)).is_ok());
        assert!(Description::new("ü".repeat(1_025)).is_err());
        assert!(Description::new("line\u{7}").is_err());
    }
}
