"""Notes on other projects (`study/NAME`) whose citations are checked against the code that they quote."""
