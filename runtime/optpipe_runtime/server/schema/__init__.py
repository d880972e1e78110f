"""The requests and answers of the API, one group a file. Fields that are not declared are refused."""
