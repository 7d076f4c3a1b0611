"""What the OpenAPI page tells of the endpoints: answers, errors and fields. Answers nothing."""
