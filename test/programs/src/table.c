/* All features. */
#include "subject.h"

#define F(name) extern const struct feature feature_##name;
#include "table.h"
#undef F

const struct feature *const features[] = {
#define F(name) &feature_##name,
#include "table.h"
#undef F
	NULL,
};
