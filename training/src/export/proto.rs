//! The part of ONNX's protobuf schema that our graphs use, with the field numbers of `onnx.proto`
//! (IR version 9). Hand-declared, so that no protobuf compiler is needed.

/// ONNX element types.
pub mod data_type {
    /// 32-bit float.
    pub const FLOAT: i32 = 1;
    /// Unsigned byte.
    pub const UINT8: i32 = 2;
    /// Signed byte.
    pub const INT8: i32 = 3;
    /// 32-bit integer.
    pub const INT32: i32 = 6;
    /// 64-bit integer.
    pub const INT64: i32 = 7;
    /// IEEE half precision.
    pub const FLOAT16: i32 = 10;
}

/// ONNX attribute types.
pub mod attribute_type {
    /// One float.
    pub const FLOAT: i32 = 1;
    /// One integer.
    pub const INT: i32 = 2;
}

/// The file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelProto {
    /// Version of the schema.
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    /// Who wrote the file.
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    /// Version of the writer.
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    /// The graph.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// Operator sets used.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
}

/// An operator set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSetIdProto {
    /// Empty for ONNX's own.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    /// Its version.
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

/// Nodes in topological order and the constants they use.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GraphProto {
    /// Operations.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// Required by readers.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// Constants.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Inputs.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// Outputs.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

/// An operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeProto {
    /// Input names; an empty one leaves an optional input out.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Output names.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// For messages and profiles.
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    /// The operator.
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    /// Its attributes.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Its operator set.
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
}

/// An attribute; optional fields, because a reader tells 0 from absent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttributeProto {
    /// Its name.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// The value of a FLOAT.
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// The value of an INT.
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// One of [`attribute_type`].
    #[prost(int32, optional, tag = "20")]
    pub r#type: Option<i32>,
}

/// A constant.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorProto {
    /// Sizes; none for a scalar.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// One of [`data_type`].
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    /// Its name in the graph.
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    /// Row-major little-endian values.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub raw_data: Option<Vec<u8>>,
}

/// An input or output of the graph.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfoProto {
    /// Its name.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Its type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

/// A type; only tensors are used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypeProto {
    /// Of a tensor.
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorTypeProto {
    /// One of [`data_type`].
    #[prost(int32, optional, tag = "1")]
    pub elem_type: Option<i32>,
    /// Its sizes.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// Sizes of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorShapeProto {
    /// One by dimension.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// A size, known or named: one of the two fields is set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DimensionProto {
    /// Known.
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    /// Named.
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prost::Message;

    use super::*;

    #[test]
    fn bytes_are_what_the_schema_says() {
        // Encoded by hand from onnx.proto: field 1 (varint) = 9; field 8 (message) {field 2 = 17};
        // field 7 (message) {field 2 "g"}; prost writes in tag order.
        let model = ModelProto {
            ir_version: Some(9),
            graph: Some(GraphProto { name: Some("g".into()), ..Default::default() }),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
            ..Default::default()
        };
        assert_eq!(model.encode_to_vec(), [8, 9, 58, 3, 18, 1, b'g', 66, 2, 16, 17]);
        let zero = AttributeProto {
            name: Some("axis".into()),
            i: Some(0),
            r#type: Some(attribute_type::INT),
            ..Default::default()
        };
        // The zero itself is on the wire: readers tell it from an absent value.
        assert_eq!(zero.encode_to_vec(), [10, 4, b'a', b'x', b'i', b's', 24, 0, 160, 1, 2]);
    }

    #[test]
    fn a_tensor_survives_the_round_trip() {
        let t = TensorProto {
            dims: vec![2, 3],
            data_type: Some(data_type::INT8),
            name: Some("w".into()),
            raw_data: Some(vec![1, 2, 3, 255, 0, 128]),
        };
        assert_eq!(TensorProto::decode(t.encode_to_vec().as_slice()).unwrap(), t);
    }
}
