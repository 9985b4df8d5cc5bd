"""Other methods in the shape of our lanes, to be measured side by side; docs/method.md section 8."""
