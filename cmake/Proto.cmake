# Descriptors of what hostd and the controller tell each other: wire/proto/gpupool/v1/node.proto becomes
# generated/node.binpb, which wire/proto/node.py reads. The compiler is that of the PyPI package grpcio-tools.
set(GPUPOOL_NODE_MESSAGES ${CMAKE_BINARY_DIR}/generated/node.binpb)
set(proto_folder ${CMAKE_SOURCE_DIR}/wire/proto)
add_custom_command(
  OUTPUT ${GPUPOOL_NODE_MESSAGES}
  COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/generated
  COMMAND ${Python3_EXECUTABLE} -m grpc_tools.protoc -I ${proto_folder}
          --descriptor_set_out=${GPUPOOL_NODE_MESSAGES} gpupool/v1/node.proto
  DEPENDS ${proto_folder}/gpupool/v1/node.proto
  COMMENT "Describing the messages of hostd and controller"
  VERBATIM)
add_custom_target(gpupool_proto ALL DEPENDS ${GPUPOOL_NODE_MESSAGES})
