//! The key-value part of the header.

use std::collections::BTreeMap;

use crate::GgufError;
use crate::cursor::Cursor;

/// One metadata value. Integers keep their sign in `i128`-free form: all of GGUF's widths fit these.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer width.
    Unsigned(u64),
    /// Any signed integer width.
    Signed(i64),
    /// Either float width.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// Text.
    String(String),
    /// Values of one type; arrays do not nest.
    Array(Vec<Value>),
}

/// GGUF's number for an array.
const ARRAY: u32 = 9;

impl Value {
    fn read(cursor: &mut Cursor<'_>, kind: u32, key: &str) -> Result<Self, GgufError> {
        if kind != ARRAY {
            return Self::scalar(cursor, kind, key);
        }
        let element = cursor.u32(key)?;
        if element == ARRAY {
            return Err(GgufError::unexpected(
                key,
                "an array of plain values",
                "an array of arrays",
            ));
        }
        let smallest = smallest_bytes(element).ok_or_else(|| unknown_kind(key, element))?;
        let count = cursor.count(smallest, key)?;
        (0..count)
            .map(|_| Self::scalar(cursor, element, key))
            .collect::<Result<_, _>>()
            .map(Self::Array)
    }

    fn scalar(cursor: &mut Cursor<'_>, kind: u32, key: &str) -> Result<Self, GgufError> {
        let mut raw = |bytes: u64| -> Result<[u8; 8], GgufError> {
            let mut out = [0; 8];
            let taken = cursor.take(bytes, key)?;
            out[..taken.len()].copy_from_slice(taken);
            Ok(out)
        };
        // Little endian: a narrow integer fills the low bytes; a signed one is then shifted up and down again.
        let signed =
            |raw: [u8; 8], bits: u32| Self::Signed(i64::from_le_bytes(raw) << (64 - bits) >> (64 - bits));
        Ok(match kind {
            0 => Self::Unsigned(u64::from_le_bytes(raw(1)?)),
            1 => signed(raw(1)?, 8),
            2 => Self::Unsigned(u64::from_le_bytes(raw(2)?)),
            3 => signed(raw(2)?, 16),
            4 => Self::Unsigned(u64::from_le_bytes(raw(4)?)),
            5 => signed(raw(4)?, 32),
            6 => {
                let [a, b, c, d, ..] = raw(4)?;
                Self::Float(f64::from(f32::from_le_bytes([a, b, c, d])))
            }
            7 => Self::Bool(raw(1)?[0] != 0),
            8 => Self::String(cursor.string(key)?),
            10 => Self::Unsigned(u64::from_le_bytes(raw(8)?)),
            11 => signed(raw(8)?, 64),
            12 => Self::Float(f64::from_le_bytes(raw(8)?)),
            other => return Err(unknown_kind(key, other)),
        })
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
        }
    }

    fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// Bytes of the smallest value of a kind, for bounding counts.
const fn smallest_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        8 | 10..=12 => Some(8),
        _ => None,
    }
}

fn unknown_kind(key: &str, kind: u32) -> GgufError {
    GgufError::unexpected(key, "a value type of GGUF v3 (0 to 12)", format!("type {kind}"))
}

/// All metadata of a file, by key.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(crate) fn read(cursor: &mut Cursor<'_>, count: usize) -> Result<Self, GgufError> {
        let mut values = BTreeMap::new();
        for i in 0..count {
            let key = cursor.string(&format!("metadata key {i}"))?;
            let kind = cursor.u32(&key)?;
            let value = Value::read(cursor, kind, &key)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(GgufError::unexpected(key, "one value", "the key twice"));
            }
        }
        Ok(Self { values })
    }

    /// The value of `key`, if it is there.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    fn require<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, GgufError> {
        let value = self
            .get(key)
            .ok_or_else(|| GgufError::MissingKey(key.to_owned()))?;
        read(value).ok_or_else(|| GgufError::unexpected(key, kind, value.kind()))
    }

    /// A non-negative integer.
    ///
    /// # Errors
    /// When the key is absent or of another type.
    pub fn integer(&self, key: &str) -> Result<u64, GgufError> {
        self.require(key, "a non-negative integer", Value::as_u64)
    }

    /// A float; stored in either width.
    ///
    /// # Errors
    /// When the key is absent, of another type, or not finite.
    pub fn float(&self, key: &str) -> Result<f32, GgufError> {
        #[allow(clippy::cast_possible_truncation)] // the file stores f32
        self.require(key, "a finite float", |value| match value {
            Value::Float(value) if value.is_finite() => Some(*value as f32),
            _ => None,
        })
    }

    /// A boolean.
    ///
    /// # Errors
    /// When the key is absent or of another type.
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        self.require(key, "a boolean", |value| {
            if let Value::Bool(value) = value {
                Some(*value)
            } else {
                None
            }
        })
    }

    /// Text.
    ///
    /// # Errors
    /// When the key is absent or of another type.
    pub fn string(&self, key: &str) -> Result<&str, GgufError> {
        self.require(key, "a string", |value| {
            if let Value::String(text) = value {
                Some(text.as_str())
            } else {
                None
            }
        })
    }

    /// An array, whatever it holds.
    ///
    /// # Errors
    /// When the key is absent or of another type.
    pub fn array(&self, key: &str) -> Result<&[Value], GgufError> {
        self.require(key, "an array", |value| {
            if let Value::Array(all) = value {
                Some(all.as_slice())
            } else {
                None
            }
        })
    }

    /// An array of non-negative integers.
    ///
    /// # Errors
    /// When the key is absent or holds anything else.
    pub fn integers(&self, key: &str) -> Result<Vec<u64>, GgufError> {
        let read = |value: &Value| {
            value
                .as_u64()
                .ok_or_else(|| GgufError::unexpected(key, "integers", value.kind()))
        };
        self.array(key)?.iter().map(read).collect()
    }

    /// An array of finite floats.
    ///
    /// # Errors
    /// When the key is absent or holds anything else.
    pub fn floats(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        #[allow(clippy::cast_possible_truncation)] // the file stores f32
        let read = |value: &Value| match value {
            Value::Float(value) if value.is_finite() => Ok(*value as f32),
            other => Err(GgufError::unexpected(key, "finite floats", other.kind())),
        };
        self.array(key)?.iter().map(read).collect()
    }
}
